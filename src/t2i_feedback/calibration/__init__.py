"""Do the models that judge rank what they judge? Sweeps of images, true and altered captions, agreement."""
