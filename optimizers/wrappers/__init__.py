"""What makes another optimizer of an optimizer: `--opt slowed-1.05+adam`."""
