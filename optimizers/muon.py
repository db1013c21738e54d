"""Muon: momentum, orthogonalized, for the hidden layers' matrices; Adam for the rest."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Bounds, Range, Spec, bounds

QUINTIC = (3.4445, -4.7750, 2.0315)  # the reference's; singular values end in [0.7, 1.2]


def direction(
    *, momentum: float = 0.95, adam_ratio: float = 0.3, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Orthogonalized momentum for hidden matrices, adam_ratio times Adam's direction for the rest."""
    adam = optax.chain(optax.scale_by_adam(b1, b2), optax.scale(adam_ratio))
    return optax.partition({"muon": scale_by_muon(momentum), "adam": adam}, labels)


def labels(params: Any) -> Any:
    """Which of the two: muon for kernels of rank 2 or more, but the output layer's (named `head`)."""

    def label(path: tuple[Any, ...], leaf: Array) -> str:
        names = [getattr(part, "key", None) for part in path]
        return "muon" if names[-1:] == ["kernel"] and leaf.ndim >= 2 and "head" not in names else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def scale_by_muon(momentum: float = 0.95) -> optax.GradientTransformation:
    """u = (1 - momentum) g + momentum m with m an average of gradients; orthogonalized, and scaled.

    Kernels [..., out] count as matrices [in, out]; the scale is sqrt(max(1, out / in)).
    """

    def init(params: Any) -> optax.EmaState:
        return optax.EmaState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: optax.EmaState, params: Any = None) -> tuple[Any, optax.EmaState]:
        del params
        average = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state.ema, grads)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, average, grads)
        return jax.tree.map(_orthogonal, ahead), optax.EmaState(state.count + 1, average)

    return optax.GradientTransformation(init, update)


def _orthogonal(kernel: Array) -> Array:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    scale = max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5
    return (scale * orthogonalize(matrix)).reshape(kernel.shape)


def orthogonalize(matrix: Array, steps: int = 5) -> Array:
    """About U V^T of a matrix U S V^T [m, n], by Newton-Schulz iteration on the matrix over its norm."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


build = in_recipe(direction, learning_rate=0.0438, weight_decay=0.000119)

SPEC = Spec(
    name="muon",
    build=build,
    # An orthogonal direction of a matrix [64, 64] has entries of 1/8, Adam's are near 1.
    space={"learning_rate": Range(3e-3, 3e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, adam_ratio=Bounds(0.0)),
    reference=(
        "Jordan et al. 2024 (github.com/KellerJordan/Muon), in float32, not in bfloat16. Its scale of "
        "a convolution looks at the kernel's window; this looks at inputs and outputs."
    ),
)
