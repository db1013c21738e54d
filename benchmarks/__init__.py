"""The commands. Run them as `python benchmarks/<command>.py`."""
