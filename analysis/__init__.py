"""From records to frames, statistics, figures and reports. Imports no jax."""
