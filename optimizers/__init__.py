"""Optimizers: one module each, with `build` and, for all but the simplest, `SPEC`.

A module in this folder that defines `build` is registered under its file's name, and with that under
the shared tests. `parts` has what several of them are made of. Imports jax, optax, its siblings and, of
the testbed, its errors and plugins.
"""
