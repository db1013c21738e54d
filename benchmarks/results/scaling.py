"""What one training step moves between devices, read from the program compiled for them.

    python benchmarks/results/scaling.py --task imagenet --opt adam --devices 64

Ahead of time, for as many devices as asked for, on a machine that has none of them; nothing is run. The
paper's networks, shapes and batch; XLA's CPU backend divides the program (GSPMD is common to all
backends; latency hiding and the merging of collectives are not, so bytes are to be trusted more than
counts). docs/scaling.md has the tables and what follows from them.
"""

import argparse
import collections
import math
import os
import re
import time
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
WIDTHS = {
    "f64": 8,
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
    "s8": 1,
    "u8": 1,
    "pred": 1,
}


def main() -> None:
    """Compiles, and prints what is moved."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--task", default="imagenet", metavar="NAME")
    p.add_argument("--opt", default="adam", metavar="NAME")
    p.add_argument("--devices", type=int, default=8, metavar="N")
    p.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    p.add_argument("--divide", action="store_true", help="divide parameters, too")
    p.add_argument("--hlo", metavar="PATH", help="write the program there")
    args = p.parse_args()
    # Before JAX is imported, which reads them.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    begun = time.perf_counter()
    text = compile_step(args)
    if args.hlo:
        with open(args.hlo, "w") as file:
            file.write(text)
    found = collectives(text)
    print(
        f"{args.task}, {args.opt}, {args.devices} devices; "
        f"compiled in {time.perf_counter() - begun:.0f} s"
    )
    print("| collective | operations | arrays | bytes of each device's results |\n|---|---|---|---|")
    for kind, operations in found.items():
        arrays = [size for operation in operations for size in operation]
        print(f"| {kind} | {len(operations)} | {len(arrays)} | {sum(arrays):,} |")


def compile_step(args: Any) -> str:
    """The optimized program of one training step."""
    import jax
    import jax.numpy as jnp

    from optimizers import registry
    from testbed import devices
    from testbed.models import convolution
    from testbed.problem.lessons import split_seeds
    from testbed.training.compile import compile_init, make_functions, program_key
    from testbed.training.optimizer import all_static, from_spec

    # Convolutions as on accelerators, instead of patches times a matrix.
    convolution.jax = Accelerated(jax)  # type: ignore[assignment, attr-defined]
    devices.use(args.devices)
    if args.divide:
        devices.memory = lambda: 1.0
    problem, optimizer = unopened(args.task, args.precision), from_spec(registry.find(args.opt))
    steps = next(iter(problem.task.horizons.values()))
    key = program_key(problem, optimizer, steps, all_static(optimizer), from_init=False)
    functions = make_functions(key)
    keys = jax.eval_shape(split_seeds, 0, 0)
    keys = placed(keys, jax.tree.map(lambda _: devices.replicated(), keys))
    begin = compile_init(functions.init, keys, {}, None)
    state = placed(jax.eval_shape(functions.init, keys, {}, None), begin.output_shardings)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(functions.advance, donate_argnums=0, out_shardings=shardings)
    compiled = step.lower(state, jnp.int32(1), problem.source.data, keys, {}).compile()
    memory: Any = compiled.memory_analysis()
    print(f"arguments of a device: {memory.argument_size_in_bytes:,} bytes")
    return compiled.as_text() or ""


def unopened(name: str, precision: str) -> Any:
    """A streamed task's problem, with shapes in place of its data and its teachers' weights."""
    import dataclasses

    from testbed import devices, teachers
    from testbed.problem.problem import Problem
    from testbed.problem.source import constant_source
    from testbed.problem.streaming import shapes_of_batches
    from testbed.tasks import TASKS

    task = dataclasses.replace(TASKS[name], precision=precision)
    networks = [t for t in task.teachers if isinstance(t, teachers.NetworkTeacher)]
    shapes = [teachers.shapes(teacher.network, teacher.inputs) for teacher in networks]
    params = tuple(placed(of_one, devices.parameters(of_one)) for of_one in shapes)
    data = shapes_of_batches(task, frozenset(), params)
    source = constant_source(None, data, dict)
    return Problem(task, "function_matching", devices.mesh(), lambda: source)


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes with their shardings."""
    import jax

    def place(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, shardings)


class Accelerated:
    """JAX, but for the name of its backend."""

    def __init__(self, jax: Any) -> None:
        self._jax = jax

    def __getattr__(self, name: str) -> Any:
        return (lambda: "accelerator") if name == "default_backend" else getattr(self._jax, name)


def collectives(text: str) -> dict[str, list[list[int]]]:
    """Kind -> operations, each as the bytes of the arrays that come out of it on each device."""
    found = collections.defaultdict(list)
    for line in text.splitlines():
        if match := re.search(r" = (.*?) (" + "|".join(KINDS) + r")(-start)?\(", line):
            operation = []
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                lengths = [int(length) for length in shape.split(",") if length]
                operation.append(WIDTHS[kind] * math.prod(lengths))
            found[match[2]].append(operation)
    return dict(found)


if __name__ == "__main__":
    main()
