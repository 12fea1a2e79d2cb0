"""What keeps a run alive: checkpoints, checks before the first step, non-finite values, signals."""
