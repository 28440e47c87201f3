"""MLflow: what makes a run another run, and publishing."""
