"""Text-to-image models: loading, sampling as a policy, adapters, and an arm's folder of images."""
