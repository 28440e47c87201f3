"""How an adapter learns: rollouts, advantages, objectives, updates, checkpoints, and what the user is asked about."""
