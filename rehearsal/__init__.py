"""The paper's experiments, rehearsed: the same commands, with stand-ins for everything that is large or far away."""
