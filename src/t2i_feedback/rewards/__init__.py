"""What fine-tuning maximises: the kinds of reward, each found by the registry in the file that defines it."""
