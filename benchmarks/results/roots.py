"""Accuracy of inverse roots, by both methods, against float64.

    python benchmarks/results/roots.py

Matrices of 128 with eigenvalues log-uniform from 1 to 1 / condition number, rounded to float32; ridge
1e-6 relative. Error: of the root, relative, against the float64 root of the unrounded matrix. Residual:
X^p (A + r I) - I of the unrounded matrix, root mean square over eigenvalues. Medians of 8 matrices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from optimizers.parts.roots import inverse_roots
from testbed.cli import serve

RIDGE, SIZE, MATRICES = 1e-6, 128, 8


def main() -> None:
    """Prints the table."""
    print("| p | condition | method | error | residual | reported residual |\n|---|---|---|---|---|---|")
    for power in (2, 4, 6):
        for condition in (1e2, 1e4, 1e8, 1e12):
            rng = np.random.default_rng(0)
            bases = np.linalg.qr(rng.normal(size=(MATRICES, SIZE, SIZE)))[0]
            values = np.logspace(0, -np.log10(condition), SIZE)
            exact = (bases * (values + RIDGE) ** (-1 / power)) @ np.swapaxes(bases, 1, 2)
            matrices = jnp.float32((bases * values) @ np.swapaxes(bases, 1, 2))
            ridged = (bases * (values + RIDGE)) @ np.swapaxes(bases, 1, 2)
            every = jnp.full(MATRICES, True)
            for method in ("eigh", "newton"):
                found, reported = jax.jit(
                    lambda m, p, e, method=method: inverse_roots(m, p, e, RIDGE, method=method)
                )(matrices, jnp.full(MATRICES, power), every)
                roots = np.float64(found)
                errors = np.linalg.norm(roots - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
                rest = np.linalg.matrix_power(roots, power) @ ridged - np.eye(SIZE)
                residuals = np.linalg.norm(rest, axis=(1, 2)) / SIZE**0.5
                cells = [errors, residuals, reported]
                print(
                    f"| {power} | {condition:.0e} | {method} | "
                    + " | ".join(f"{np.median(cell):.1e}" for cell in cells)
                    + " |"
                )


if __name__ == "__main__":
    serve(main)
