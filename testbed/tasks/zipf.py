"""Next-token prediction of a known source with a Zipf vocabulary: a task whose teacher can be realized.

A token follows two others. Its logits are those of a Zipf distribution plus a term of low rank for each
of the two, so that the source is known exactly, inputs never repeat, and a student can reach a KL of 0:
nothing but the optimizer limits it. Held-out KL falls fast and scatters little, which makes the task the
sharpest scale here; the head of the vocabulary is seen hundreds of times as often as its tail.

Source: ours; heavy-tailed classes after Kunstner et al. 2024 (arXiv 2402.19449), the log-bilinear form
after Mnih and Hinton 2007. Choices and measurements: docs/zipf.md.
"""

from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, random
from numpy.typing import NDArray

from testbed.data.arrays import Generated, Part
from testbed.problem.task import Target, Task
from testbed.teachers import ExactTeacher

VOCABULARY, RANK = 256, 16
SPREAD = 1.5  # standard deviation of what the context adds to a logit


class Tables(NamedTuple):
    """The source."""

    unigram: NDArray[np.float32]  # [v], logarithms of frequencies
    context: NDArray[np.float32]  # [2, v, rank]: of the token before, and of the one before that
    token: NDArray[np.float32]  # [2, v, rank]


def tables() -> Tables:
    """The same in every process."""
    rng = np.random.default_rng(2026)
    frequency = 1 / np.arange(1, VOCABULARY + 1)
    size = (2, 2, VOCABULARY, RANK)
    context, token = rng.normal(size=size) * (SPREAD**2 / (2 * RANK)) ** 0.25
    unigram = np.log(frequency / frequency.sum())
    return Tables(*(np.asarray(x, np.float32) for x in (unigram, context, token)))


def draw(source: Tables, key: Array, n: int) -> Part:
    """Contexts [n, 2] of tokens that are drawn by their frequency, and the token that follows each."""
    contexts_key, next_key = random.split(key)
    contexts = random.categorical(contexts_key, source.unigram, shape=(n, 2)).astype(jnp.int32)
    return Part(contexts, random.categorical(next_key, logits(source, contexts)))


def logits(source: Tables, contexts: Array) -> Array:
    """The teacher: logits [b, v] of the token that follows contexts [b, 2]."""
    pairs = [source.context[i][contexts[:, i]] @ source.token[i].T for i in (0, 1)]
    return jnp.asarray(source.unigram) + pairs[0] + pairs[1]


class NGram(nn.Module):
    """An n-gram MLP (Bengio et al. 2003): embeddings of the context, dense layers, a head."""

    width: int = 128
    layers: int = 2
    embedding: int = 32

    @nn.compact
    def __call__(self, contexts: Array) -> Array:
        tables = [nn.Embed(VOCABULARY, self.embedding, name=f"embedding{i}") for i in (0, 1)]
        x = jnp.concatenate([table(contexts[:, i]) for i, table in enumerate(tables)], axis=-1)
        for i in range(1, self.layers + 1):
            kernel_init = nn.initializers.he_normal()
            x = jax.nn.relu(nn.Dense(self.width, kernel_init=kernel_init, name=f"dense{i:02}")(x))
        # As the paper's students, it starts at a uniform distribution.
        return nn.Dense(VOCABULARY, kernel_init=nn.initializers.zeros, name="head")(x)


ZIPF_MLP = Task(
    name="zipf-mlp",
    summary="next token of a known source, Zipf vocabulary; n-gram MLP that can match its teacher",
    source=Generated(draw, held_out=256, arrays=tables, rounds=32),
    student=NGram(),
    teachers=(ExactTeacher("zipf", logits, tables),),
    temperature=1.0,
    batch_size=256,
    horizons=MappingProxyType({"short": 500, "medium": 2_000, "long": 8_000}),
    target=Target("validation_kl", 0.05, "min"),
    mix=None,
    measure_every=50,
)
