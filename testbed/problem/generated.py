"""Sources that draw endless inputs on the device."""

import functools

import jax
from jax import random

from testbed import devices
from testbed.data.arrays import Generated
from testbed.problem.evaluation import SEED, HeldOut, make_held_out
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
        return make_held_out(task, PARTS[part], data.teachers, *drawn)

    def held_out() -> dict[str, HeldOut]:
        everywhere = devices.replicated()
        return {
            name: jax.jit(functools.partial(draw, i), out_shardings=everywhere)(data)
            for i, name in enumerate(PARTS)
        }

    return constant_source(None, data, held_out)
