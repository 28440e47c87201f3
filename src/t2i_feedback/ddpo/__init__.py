"""DDPO (Black et al., *Training Diffusion Models with Reinforcement Learning*, 2023): the denoising process as a policy."""
