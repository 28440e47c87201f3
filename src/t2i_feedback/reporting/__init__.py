"""From measured numbers and pictures to one page that anyone can open. Knows no paths: the report stage hands data in."""
