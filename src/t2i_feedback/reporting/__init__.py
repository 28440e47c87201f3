"""From measured numbers and pictures to one page that anyone can open. The report stage hands the data in."""
