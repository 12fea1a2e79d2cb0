"""What is watched during a run: losses, validation, grids, early stopping, profiles."""
