"""What fine-tuning maximises: one file for each kind of reward, found by the registry."""
