"""t2i-feedback: improve text-to-image models with feedback from multimodal language models."""
