"""From measured numbers and images to one page that anyone can open. The report stage hands the data in."""
