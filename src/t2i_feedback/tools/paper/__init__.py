"""The paper's two tables with our numbers beside its own, collected from several experiments."""
