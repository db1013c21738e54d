"""Measures how fast a task trains on this machine, piece by piece, on synthetic images.

    python benchmarks/throughput.py --task imagenet
    python benchmarks/throughput.py --task flowers --opt shampoo --batch 256
    python benchmarks/throughput.py --task flowers --data       # the pipeline from JPEG files alone

Whole steps as a trial takes them (crops from the host, mixup, teacher, student, optimizer), and the
same pieces alone: images per second, their share of the step, and of the device's peak, which is
measured with a large matrix product in the same precision. FLOPs are those of convolutions and matrix
products, 2 per multiply-accumulate; a student's step counts as three forward passes, as is usual. The
weights are random: nothing needs to be downloaded.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.throughput")

import argparse
import dataclasses
import io
import itertools
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import random
from numpy.typing import NDArray
from PIL import Image

from analysis.output.files import replacing, safe
from benchmarks.flops import flops
from benchmarks.trials import add_task_options, choose_task
from optimizers import registry
from testbed import compilation_cache, devices, provenance, teachers
from testbed.cli import Parser, add_debug_option, count, natural, positive, require_writable
from testbed.data import crops, loader, tfds
from testbed.errors import RequestError
from testbed.problem.lessons import TrainingData, make_keys, teacher_logits
from testbed.problem.problem import Problem
from testbed.problem.protocols import Lesson
from testbed.problem.source import constant_source
from testbed.problem.task import Task
from testbed.training.compile import compile_init, make_functions, program_key
from testbed.training.optimizer import all_static, from_spec
from testbed.training.step import State, train_step

MOST_WORKERS = 1024


def main() -> None:
    """Measures and prints."""
    args = parser().parse_args()
    task, steps, _ = choose_task(args)
    if not task.streamed:
        raise RequestError(f"--task {task.name}: it has no stream; benchmarks/overhead.py measures it")
    if args.workers > MOST_WORKERS:
        raise RequestError(f"--workers {args.workers}: at most {MOST_WORKERS}")
    if args.out is not None:
        require_writable("--out", args.out)
    compilation_cache.enable_cache()
    if args.data:
        measure_data(task, args.images, args.workers, args.rounds)
        return
    if args.batch is not None:
        require_memory(task, args.batch)
        task = dataclasses.replace(task, batch_size=args.batch)
        devices.require_divisible(task.batch_size)
    registry.find(args.opt)
    measured = Measured(task, args.opt, steps)
    rows = measured.rows(args.rounds)
    print_rows(task, rows, measured)
    if args.out is not None:
        result = {
            "task": task.name,
            "optimizer": args.opt,
            "batch_size": task.batch_size,
            "precision": task.precision,
            "peak_tflops": measured.peak / 1e12,
            "memory_bytes": measured.memory(),
            "rows": [row._asdict() for row in rows],
            "device": provenance.device(),
            "versions": provenance.versions(),
            "date": time.strftime("%Y-%m-%d"),
        }
        text = json.dumps(result, indent=2) + "\n"
        with replacing("--out", args.out) as new:
            (new / f"throughput-{safe(task.name)}.json").write_text(text, "utf-8")


def require_memory(task: Task, batch: int) -> None:
    """Raises RequestError where the inputs of a batch alone would not fit."""
    needed = 4 * batch * math.prod(task.stream().inputs.shape)
    room = devices.memory_for_batches() * jax.local_device_count()
    if needed > room:
        raise RequestError(
            f"--batch {batch}: its images take {needed / 2**30:,.1f} GiB, and there is room for "
            f"{room / 2**30:,.1f}; take a smaller one"
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", default="adam", metavar="NAME", help="default: %(default)s")
    p.add_argument("--batch", type=positive, metavar="N", help="images a step; default: the task's")
    p.add_argument("--rounds", type=count, default=10, metavar="N", help="default: %(default)s")
    p.add_argument("--data", action="store_true", help="measure the pipeline from JPEG files instead")
    p.add_argument(
        "--images", type=count, default=2000, metavar="N", help="with --data; default: %(default)s"
    )
    p.add_argument(
        "--workers", type=natural, default=2, metavar="N", help="with --data, at most 1024; default: 2"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="for the figures as JSON")
    add_debug_option(p)
    add_task_options(p, protocol=False)
    p.set_defaults(task="imagenet")
    return p


# Steps


class Row(NamedTuple):
    """A piece of a step."""

    name: str
    seconds: float  # median
    flops: float


class Piece(NamedTuple):
    """A function with its arguments, and the FLOPs of its products."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    flops: float


def make_pieces(problem: Problem, opt: str, total_steps: int) -> dict[str, Piece]:
    """A task's whole step as a trial takes it, and its parts."""
    task, own = problem.task, from_spec(registry.find(opt))
    key = program_key(problem, own, total_steps, all_static(own), from_init=False)
    functions, keys, data = make_functions(key), make_keys(0), problem.source.data
    lesson = jax.jit(problem.make_lesson)(data, keys.lessons, jnp.int32(0))
    state = compile_init(functions.init, keys, {}, None)(keys, {}, None)
    grads = jax.tree.map(jnp.ones_like, state.params)
    sgd = optax.with_extra_args_support(optax.sgd(1e-3))

    def whole(state: State, data: TrainingData) -> State:
        return functions.step(state, data, keys, {})[0]

    def student(params: Any, lesson: Lesson) -> Any:
        # SGD's update is next to nothing; without one, XLA would drop the gradient.
        start = State(jnp.int32(0), params, sgd.init(params), jnp.float32(0), jnp.bool(True))
        step = (keys.optimizer, task.distance, functions.student, sgd)
        return train_step(start, lesson, *step)[0].params

    def optimizer(grads: Any, state: State) -> Any:
        extra = {"key": keys.optimizer}
        return key.make_optimizer({}).update(grads, state.opt_state, state.params, **extra)

    def teacher(params: Any, views: Any) -> Any:
        return teacher_logits(task, params, views)

    teacher_flops = matrix_flops(teacher, data.teachers, lesson.inputs)
    student_flops = 3 * matrix_flops(functions.student, state.params, lesson.inputs)
    pieces = {
        "whole step": Piece(whole, (state, data), teacher_flops + student_flops),
        "teacher": Piece(teacher, (data.teachers, lesson.inputs), teacher_flops),
        "student": Piece(student, (state.params, lesson), student_flops),
    }
    if opt not in ("sam", "lbfgs", "sgd_line_search", "sophia"):  # they compute more gradients
        cost = matrix_flops(optimizer, grads, state)
        pieces["optimizer"] = Piece(optimizer, (grads, state), cost)
    return pieces


class Measured:
    """The pieces of a task's step, compiled."""

    def __init__(self, task: Task, opt: str, total_steps: int) -> None:
        self.task = task
        self.pieces = make_pieces(synthetic_problem(task), opt, total_steps)
        self.programs = {
            name: jax.jit(piece.function).lower(*piece.arguments).compile()
            for name, piece in self.pieces.items()
        }
        self.peak = matrix_peak(jnp.dtype(task.precision)) * jax.device_count()

    def rows(self, rounds: int) -> list[Row]:
        """All pieces, timed in turn."""
        seconds: dict[str, list[float]] = {name: [] for name in self.programs}
        for number in range(rounds + 1):
            for name, program in self.programs.items():
                begun = time.perf_counter()
                jax.block_until_ready(program(*self.pieces[name].arguments))
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - begun)
        rows = [Row(n, statistics.median(s), self.pieces[n].flops) for n, s in seconds.items()]
        local = synthetic_images(self.task)
        sent = []
        for _ in range(rounds):
            begun = time.perf_counter()
            jax.block_until_ready(devices.from_process_local(local, devices.batch_sharded()))
            sent.append(time.perf_counter() - begun)
        return [*rows, Row("images to the device", statistics.median(sent), 0.0)]

    def memory(self) -> float | None:
        """Peak bytes of a device in a step, as the compiler plans it."""
        plan = self.programs["whole step"].memory_analysis()
        if plan is None:
            return None
        return float(plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes)


def synthetic_problem(task: Task) -> Problem:
    """A task whose source is one step's images, of noise, and whose teachers have random weights."""
    params = []
    for i, teacher in enumerate(task.teachers):
        assert isinstance(teacher, teachers.NetworkTeacher)
        inputs = jnp.zeros((1, *teacher.inputs.shape))
        init = jax.jit(
            lambda key, inputs, network=teacher.network: network.init(key, inputs)["params"],
            out_shardings=devices.parameters(teachers.shapes(teacher.network, teacher.inputs)),
        )
        params.append(init(random.key(i), inputs))
    pixels, sharded = synthetic_images(task), devices.batch_sharded()
    labels = np.zeros(len(pixels), np.int32)
    arrays = (devices.from_process_local(array, sharded) for array in (pixels, labels))
    data = TrainingData(tuple(params), *arrays)
    source = constant_source(len(pixels), data, dict)
    return Problem(task, "function_matching", devices.mesh(), lambda: source)


def synthetic_images(task: Task) -> NDArray[np.uint8]:
    """This host's rows of a batch of noise."""
    rows = len(devices.rows(task.batch_size))
    return np.random.default_rng(0).integers(0, 256, (rows, *task.stream().inputs.shape), np.uint8)


def matrix_flops(f: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of a function's convolutions and matrix products."""
    return flops(jax.make_jaxpr(f)(*arguments).jaxpr, products_only=True)


def matrix_peak(dtype: Any) -> float:
    """FLOPs per second of one device, in the best of several large matrix products."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a, b = (random.normal(random.key(i), (n, n)).astype(dtype) for i in range(2))
    product = jax.jit(jnp.matmul).lower(a, b).compile()
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        jax.block_until_ready(product(a, b))
        seconds.append(time.perf_counter() - begun)
    return 2 * n**3 / min(seconds)


def print_rows(task: Task, rows: Sequence[Row], measured: Measured) -> None:
    """The table."""
    step = rows[0].seconds
    print(
        f"{task.name}, batch {task.batch_size}, {task.precision}: {task.batch_size / step:,.0f} "
        f"images/s; peak of matrix products: {measured.peak / 1e12:.3g} TFLOP/s"
    )
    print("| piece | ms | share of the step | TFLOP | share of peak |\n|---|---|---|---|---|")
    for row in rows:
        speed = row.flops / row.seconds / measured.peak
        share = f"{speed:.1%}" if row.flops else ""
        work = f"{row.flops / 1e12:.3g}" if row.flops else ""
        print(f"| {row.name} | {1e3 * row.seconds:.1f} | {row.seconds / step:.1%} | {work} | {share} |")
    memory = measured.memory()
    print(f"peak memory of a device: {memory / 2**30:.2f} GiB" if memory else "peak memory: unknown")
    where = provenance.device()
    print(f"{where['count']} x {where['kind']}, {where['processor']}; {provenance.versions()}")


# Data


class Files:
    """JPEG files as records, read anew each time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._paths[index].read_bytes(), "label": 0}


def write_files(folder: Path, count: int) -> list[Path]:
    """Windows of scikit-learn's sample photographs, of 500 x 375 pixels as ImageNet's are on average."""
    photographs = []
    for name in ("china.jpg", "flower.jpg"):
        path = distribution("scikit-learn").locate_file(f"sklearn/datasets/images/{name}")
        with Image.open(str(path)) as image:
            photographs.append(np.asarray(image.convert("RGB")))
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        photograph = photographs[i % 2]
        top, left = (
            rng.integers(0, length - side)
            for length, side in zip(photograph.shape, (375, 500), strict=False)
        )
        content = io.BytesIO()
        Image.fromarray(photograph[top : top + 375, left : left + 500]).save(content, "JPEG", quality=90)
        paths.append(folder / f"{i}.jpg")
        paths[-1].write_bytes(content.getvalue())
    return paths


def bare_loop(paths: Sequence[Path], size: int, seed: int) -> int:
    """What any pipeline must do: read, decode, crop. Nothing is batched, shuffled or sent.

    It keeps its memory as the pipeline does.
    """
    loader.keep_freed_memory()
    return decode_and_crop(paths, size, seed)


def decode_and_crop(paths: Sequence[Path], size: int, seed: int) -> int:
    """The same, with memory as this process has it."""
    rng = np.random.default_rng(seed)
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            crops.inception_crop(rng, np.asarray(image.convert("RGB")), size)
    return len(paths)


def measure_data(task: Task, images: int, workers: int, rounds: int) -> None:
    """The pipeline against the bare loop, in turn, over the same files with as many workers."""
    size, batch = task.stream().size, 128
    images = max(2 * batch, images // batch * batch)
    speeds: dict[str, list[float]] = {"pipeline": [], "bare loop": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), min(images, 512))
        encoded = tfds.Encoded(Files(paths), "synthetic")
        for _ in range(rounds):
            speeds["bare loop"].append(time_bare(paths, size, images, workers))
            speeds["pipeline"].append(time_pipeline(encoded, size, images, batch, workers))
        for how, loop in (("given back", decode_and_crop), ("kept", bare_loop)):
            speed = time_alone(loop, paths, size)
            print(f"one process, freed memory {how}: {speed:.0f} images/s")
        with Image.open(paths[0]) as image:
            decoded = np.asarray(image.convert("RGB"))
    rng = np.random.default_rng(0)
    begun = time.perf_counter()
    for _ in range(1000):
        crops.inception_crop(rng, decoded, size)
    print(
        f"crops alone, of decoded images: {1000 / (time.perf_counter() - begun):.0f} images/s per core"
    )
    cores = workers or os.cpu_count() or 1
    ratios = sorted(p / b for p, b in zip(speeds["pipeline"], speeds["bare loop"], strict=True))
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"{name}: {median:.0f} images/s, {median / cores:.0f} per worker")
    print(
        f"{task.name}, {size} pixels, {workers or f'no worker processes, {cores} threads'}"
        f"{' worker processes' if workers else ''}: ratio {statistics.median(ratios):.3f} "
        f"(median of {rounds} pairs, from {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def time_alone(
    loop: Callable[[Sequence[Path], int, int], int], paths: Sequence[Path], size: int
) -> float:
    """Images per second of a loop in a fresh process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(loop, (paths[:8], size, 0))  # started and imported
        begun = time.perf_counter()
        return pool.apply(loop, (paths, size, 0)) / (time.perf_counter() - begun)


def time_bare(paths: Sequence[Path], size: int, images: int, workers: int) -> float:
    """Images per second of the bare loop, in processes, or in threads where there are none."""
    count = workers or os.cpu_count() or 1
    endless = list(itertools.islice(itertools.cycle(paths), images))
    parts = [(endless[i::count], size, i) for i in range(count)]
    if not workers:
        with ThreadPoolExecutor(count) as pool:
            begun = time.perf_counter()
            list(pool.map(lambda part: bare_loop(*part), parts))
            return images / (time.perf_counter() - begun)
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        pool.starmap(bare_loop, [(part[0][:8], size, 0) for part in parts])  # started and imported
        begun = time.perf_counter()
        pool.starmap(bare_loop, parts, chunksize=1)
        return images / (time.perf_counter() - begun)


def time_pipeline(encoded: tfds.Encoded, size: int, images: int, batch: int, workers: int) -> float:
    """Images per second that come out of `loader.batches`, once it runs evenly."""
    source = loader.TrainingCrops(encoded, 0, batch, np.arange(batch), size, second=False)
    batches = loader.batches(source, batch, workers=workers)
    ahead = 4 * max(1, workers) + (os.cpu_count() or 1)
    for _ in range(ahead):  # what was made ahead while workers started is not to count
        next(batches)
    begun = time.perf_counter()
    for _ in range(images // batch):
        next(batches)
    return images / (time.perf_counter() - begun)
