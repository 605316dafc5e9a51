"""Pure functions: the divergence of noisy weights from their prior, and schedules of training."""
