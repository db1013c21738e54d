"""From records to frames, statistics, figures and reports. Imports no jax.

Each imports from those before it: `frames` (records as pandas frames), `statistics` (pure functions on
frames), `figures` (pure functions on tables), `output` (the report's parts), `report` (the command).
"""
