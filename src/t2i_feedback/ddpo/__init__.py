"""DDPO: the denoising process as a policy (Black et al., *Training Diffusion Models with Reinforcement Learning*)."""
