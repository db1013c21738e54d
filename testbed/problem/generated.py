"""Sources that draw endless inputs on the device."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, random

from testbed import devices
from testbed.data.arrays import Generated
from testbed.problem.evaluation import (
    SEED,
    Examples,
    HeldOut,
    make_examples,
    make_held_out,
    rounds_of,
)
from testbed.problem.lessons import TrainingData
from testbed.problem.source import Source, constant_source, place_teachers, put_replicated
from testbed.problem.task import Task

PARTS = ("validation", "test")


def open_source(task: Task) -> Source:
    """A generator's arrays, on the devices, and its held-out draws."""
    generator = task.source
    assert isinstance(generator, Generated)
    data = TrainingData(
        place_teachers(task.teachers, devices.mesh()), generator=put_replicated(generator.arrays())
    )

    def draw(part: int, data: TrainingData) -> HeldOut:
        # Apart from the keys of that seed's lessons, which count up from 0.
        key = random.fold_in(random.key(SEED), 2**30 + part)
        drawn = generator.draw(data.generator, key, generator.held_out)
        held_out = make_held_out(task, PARTS[part], data.teachers, *drawn)
        rounds = rounds_of(PARTS[part], generator.rounds)
        if rounds == 1:
            return held_out

        def one(key: Array) -> Examples:
            drawn = generator.draw(data.generator, key, generator.held_out)
            return make_examples(task, data.teachers, *drawn)

        more = jax.lax.map(one, random.split(key, rounds - 1))
        first = jax.tree.map(lambda x: x[None], held_out.central)
        return held_out._replace(draws=jax.tree.map(lambda *x: jnp.concatenate(x), first, more))

    def held_out() -> dict[str, HeldOut]:
        everywhere = devices.replicated()
        return {
            name: jax.jit(functools.partial(draw, i), out_shardings=everywhere)(data)
            for i, name in enumerate(PARTS)
        }

    return constant_source(None, data, held_out)
