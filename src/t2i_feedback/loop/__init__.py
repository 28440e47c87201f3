"""Stage 1 of the paper: rounds of enhancing, drawing and validating."""
