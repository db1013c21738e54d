"""The problem to learn: a task under a protocol, its lessons, its loss and its evaluation."""
