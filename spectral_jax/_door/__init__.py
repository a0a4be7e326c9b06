"""What the commands that take a checkpoint share: analysis and compress use all of it."""
