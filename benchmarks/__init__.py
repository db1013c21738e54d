"""The commands. Run them as `python benchmarks/<command>.py`."""

import os

# Before numpy and JAX load it: LAPACK's own threads and XLA's wait for each other, and on a busy
# machine an eigendecomposition of a millisecond then takes a hundred.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
