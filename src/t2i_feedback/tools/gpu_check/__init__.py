"""What only a GPU can show: every published model at its real size, with random weights."""
