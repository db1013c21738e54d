"""A task in one file: an autoencoder that matches a known function, with a Bernoulli distance per pixel.

    python benchmarks/run.py --task examples/autoencoder.py --opt adam --opt shampoo

Inputs are random strokes, drawn by this file; the teacher is an autoencoder whose function is written
down (a projection on smooth images) instead of trained. Outputs are logits of pixels, not of classes:
there is no accuracy, and no label to learn from.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from testbed import BERNOULLI, Data, ExactTeacher, Part, Target, Task

SIDE = 8


@functools.cache
def load() -> Data:
    """Images [n, 8, 8] of two strokes each, in [0, 1]; no labels."""
    rng = np.random.default_rng(2026)
    y, x = np.mgrid[:SIDE, :SIDE][:, None] / (SIDE - 1)

    def strokes(n: int) -> np.ndarray:
        angle, offset = rng.uniform(0, np.pi, (n, 1, 1)), rng.uniform(0.2, 0.8, (n, 1, 1))
        return np.exp(-60 * (np.cos(angle) * (x - offset) + np.sin(angle) * (y - offset)) ** 2)

    parts = [Part(np.maximum(strokes(n), strokes(n)).astype(np.float32)) for n in (512, 128, 128)]
    return Data(*parts)


def smooth() -> np.ndarray:
    """The projection [64, 64] on the 20 lowest frequencies of a cosine basis."""
    k = np.arange(SIDE)
    basis = np.cos(np.pi * (k[:, None] + 0.5) * k / SIDE)
    basis /= np.linalg.norm(basis, axis=0)
    both = np.einsum("yi,xj->yxij", basis, basis).reshape(SIDE**2, SIDE**2)
    lowest = both[:, np.argsort(np.add.outer(k, k).reshape(-1), kind="stable")[:20]]
    return (lowest @ lowest.T).astype(np.float32)


def project(matrix: Array, images: Array) -> Array:
    """The teacher: logits [b, 64] of the pixels of the smoothed image."""
    flat = images.reshape(len(images), -1)
    return 8 * (jnp.matmul(flat, matrix, precision="highest") - 0.5)


class Autoencoder(nn.Module):
    """64-48-24-48-64 with ReLU; logits of pixels."""

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = images.reshape(len(images), -1)
        for i, width in enumerate((48, 24, 48)):
            x = jax.nn.relu(nn.Dense(width, name=f"dense{i}")(x))
        return nn.Dense(SIDE**2, kernel_init=nn.initializers.zeros, name="head")(x)


def blend(key: Array, images: Array) -> Array:
    """Each image with its neighbour in the batch, mixed by a share of its own."""
    a = jax.random.uniform(key, (len(images), 1, 1))
    return a * images + (1 - a) * jnp.roll(images, 1, axis=0)


TASK = Task(
    name="strokes",
    summary="an autoencoder of strokes, 8x8; the teacher is a projection on smooth images",
    source=load,
    student=Autoencoder(),
    teachers=(ExactTeacher("smooth", project, smooth),),
    temperature=1.0,
    batch_size=128,
    horizons={"short": 400, "medium": 1_600},
    target=Target("validation_kl", 0.02, "min"),
    mix=blend,
    distance=BERNOULLI,
)
