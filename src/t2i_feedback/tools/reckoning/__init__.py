"""What published image models take, reckoned from their configurations without weights and without a GPU."""
