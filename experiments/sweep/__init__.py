"""Many trials: a space, a search, blocks that run anywhere, and what they come to."""
