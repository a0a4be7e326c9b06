"""Training: a task and an optimiser, many trials in one compiled program.

`trainer.Trainer` trains in memory; `train.train` trains what a configuration says, into a folder.
"""
