"""Training: the step, the loop, the clock, checkpoints; trials alone or in batches."""
