"""How it is learned: the step, the loop, the clock, checkpoints; one trial alone or a batch of trials."""
