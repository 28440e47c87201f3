"""Loading a latent diffusion model and drawing with it."""
