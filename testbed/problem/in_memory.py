"""Sources whose inputs all fit the device at once."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from testbed import devices
from testbed.data.arrays import Part
from testbed.problem.evaluation import HeldOut, make_held_out
from testbed.problem.lessons import Params, TrainingData, teacher_logits
from testbed.problem.protocols import PROTOCOLS
from testbed.problem.source import Source, constant_source, place_teachers, put_replicated
from testbed.problem.task import Task


def open_source(task: Task, protocol: str) -> Source:
    """The arrays of a task, on the devices."""
    arrays, params, replicated = (
        task.arrays(),
        place_teachers(task.teachers, devices.mesh()),
        devices.replicated(),
    )
    training, validation, test = (put_replicated(part) for part in arrays[:3])

    def central(params: tuple[Params, ...], inputs: Array) -> Array:
        return jnp.moveaxis(teacher_logits(task, params, inputs), 1, 0)

    data = TrainingData(params, training.inputs, training.labels)
    if "central_logits" in PROTOCOLS[protocol].needs:
        logits = jax.jit(central, out_shardings=replicated)(params, training.inputs)
        data = data._replace(central_logits=logits)

    def held_out() -> dict[str, HeldOut]:
        def prepare(name: str, part: Part) -> HeldOut:
            made = jax.jit(functools.partial(make_held_out, task, name), out_shardings=replicated)
            return made(params, *part)

        return {"validation": prepare("validation", validation), "test": prepare("test", test)}

    return constant_source(len(arrays.training.inputs), data, held_out)
