"""What the Optax transformations of `optim` and `prune` share."""
