"""Measures of an arm's pictures: fidelity to real images, alignment with captions, and intervals for both."""
