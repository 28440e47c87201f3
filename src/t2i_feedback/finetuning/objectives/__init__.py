"""What an update minimises: one file for each objective."""
