"""Measures of an arm's images: fidelity to real images, alignment with captions, and intervals for both."""
