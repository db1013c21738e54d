"""The fixed protocol of FunMatch: tasks, lessons, the loop, the clock and the record.

Knows optax's interface, and no optimizer by name. Importing this package imports no jax, so that
`analysis` can read records without it.
"""
