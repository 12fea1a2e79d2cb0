"""What spreads a run over processes."""
