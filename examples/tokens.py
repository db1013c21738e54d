"""A task in one file: next-token prediction of a known source, drawn without end.

    python benchmarks/run.py --task examples/tokens.py --opt adam --opt sgd

A token follows its predecessor by a fixed random table of logits, which the teacher knows exactly: the
student's KL to it can reach 0. Nothing is ever seen twice, and no mixing is needed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, random

from testbed import ExactTeacher, Generated, Metric, Outputs, Part, Score, Target, Task
from testbed.problem.distances import Distance

VOCABULARY, LENGTH, WIDTH = 16, 8, 32


def table() -> np.ndarray:
    """Logits [v, v] of the next token, by token; the same in every process."""
    return 2 * np.random.default_rng(2026).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)


def draw(logits: Array, key: Array, n: int) -> Part:
    """Windows [n, LENGTH] of the source, and the tokens that follow each position, as labels."""
    first, rest = random.split(key)
    start = random.randint(first, (n,), 0, VOCABULARY)

    def step(token: Array, key: Array) -> tuple[Array, Array]:
        following = random.categorical(key, logits[token])
        return following, following

    _, after = jax.lax.scan(step, start, random.split(rest, LENGTH))
    tokens = jnp.concatenate([start[None], after]).T
    return Part(tokens[:, :-1], tokens[:, 1:])


def conditional(logits: Array, tokens: Array) -> Array:
    """The teacher: logits [b, LENGTH, v] of each next token."""
    return logits[tokens]


class Transformer(nn.Module):
    """One causal block: tokens [b, LENGTH] -> logits [b, LENGTH, v]; its head starts at zero."""

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        x = nn.Embed(VOCABULARY, WIDTH, name="embedding")(tokens)
        mask = nn.make_causal_mask(tokens)
        attention = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")
        x = x + attention(nn.LayerNorm(name="norm1")(x), mask=mask)
        hidden = nn.gelu(nn.Dense(2 * WIDTH, name="up")(nn.LayerNorm(name="norm2")(x)))
        x = x + nn.Dense(WIDTH, name="down")(hidden)
        return nn.Dense(VOCABULARY, kernel_init=nn.initializers.zeros, name="head")(x)


def last_kl(distance: Distance, outputs: Outputs) -> Array:
    """KL at the last position alone, [b]: a metric of this task's own."""
    return distance.kl(outputs.teacher[:, -1], outputs.student[:, -1])


TASK = Task(
    name="tokens",
    summary="a Markov chain over 16 tokens, known exactly; student: one causal transformer block",
    source=Generated(draw, held_out=256, arrays=table),
    student=Transformer(),
    teachers=(ExactTeacher("markov", conditional, table),),
    temperature=1.0,
    batch_size=64,
    horizons={"short": 200, "medium": 800},
    target=Target("validation_kl", 0.05, "min"),
    mix=None,
    scores={"last_kl": Score("views", last_kl)},
    metrics=(Metric("last_kl", "KL at the last position", "nats", "min", "log"),),
)
