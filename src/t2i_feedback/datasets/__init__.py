"""Captioned images: COCO's layout, the user's own folder, and the drawn world that ships with the project."""
