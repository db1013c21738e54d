"""Measures what the testbed costs, against a loop written by hand; and what batched trials save.

    python benchmarks/overhead.py --task digits --task digits-resnet
    python benchmarks/overhead.py --batched --opt sgd --opt adam --opt shampoo --task digits-ensemble

The hand-written loop makes the same lessons and takes the same steps, and does nothing else: no
record, no checkpoint, no measurement, no divergence check, no clock. Both run in turn, so that the
machine's load affects both; the ratio is that of the medians of their steps per second. Before that: how
long after its launch `run.py` has its first measurement, the second time (compilation cache warm).

`--batched` compares the seconds on the clock for a step of one trial: alone, and as one of several of
the same optimizer that share their lessons. Memory is that of the batch's arrays and of what its largest
program needs on a device, as XLA counts it, times the devices; and the process's own peak so far.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.overhead")

import dataclasses
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import optax
from jax import random

from benchmarks.trials import make_trial
from optimizers import registry
from testbed import compilation_cache, devices, records
from testbed.cli import Parser, add_debug_option, count, positive
from testbed.errors import RequestError, choose
from testbed.problem.problem import open_problem
from testbed.tasks import TASKS
from testbed.training.alone import iterate
from testbed.training.batch import iterate_batch
from testbed.training.groups import compile_groups, compile_lessons, needs
from testbed.training.loop import due_steps
from testbed.training.trial import Trial

SIZES = (4, 16, 32)  # of batches


def main() -> None:
    """Times both, in turn."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--task", action="append", metavar="NAME", help="default: digits and digits-resnet")
    p.add_argument("--opt", action="append", metavar="NAME", help="default: adam")
    p.add_argument("--steps", type=positive, metavar="N", help="per round; default: short horizon")
    p.add_argument("--rounds", type=count, default=5, metavar="N", help="default: %(default)s")
    p.add_argument("--batched", action="store_true", help="one trial alone against several in a batch")
    add_debug_option(p)
    args = p.parse_args()
    in_memory = {name: task for name, task in TASKS.items() if not task.streamed}
    tasks = [choose("--task", name, in_memory) for name in args.task or ["digits", "digits-resnet"]]
    specs = {opt: registry.find(opt) for opt in args.opt or ["adam"]}
    compilation_cache.enable_cache()
    if args.batched:
        devices.use_cores()
    for opt, spec in specs.items():
        if not args.batched:
            seconds = [launch(opt) for _ in range(2)][1]
            print(f"run.py --opt {opt}: first measurement {seconds:.1f} s after launch")
        for task in tasks:
            steps = args.steps or next(iter(task.horizons.values()))
            trial = make_trial(open_problem(task), spec, steps, 0, {})
            (compare_batches if args.batched else compare)(trial, args.rounds)


def launch(opt: str) -> float:
    """Seconds from the launch of run.py to the first measurement in its record; then kills it."""
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "--opt", opt, "--out", out]
        # Our own command.
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
            try:
                while not any(path.stat().st_size for path in records.paths(Path(out))):
                    if process.poll() is not None:
                        said = process.communicate()[1]
                        raise RequestError(f"--opt {opt}: status {process.returncode}, {said}")
                    time.sleep(0.01)
                return time.perf_counter() - begun
            finally:
                process.kill()


def compare(trial: Trial, rounds: int) -> None:
    """Prints steps per second of both sides, and their ratio."""
    by_hand = HandWritten(trial)
    speeds: dict[str, list[float]] = {"trial": [], "by hand": []}
    for number in range(rounds + 1):
        seconds = {"trial": timed_trial(trial), "by hand": by_hand.run(trial.total_steps)}
        if number:  # the first round warms up
            for side, s in seconds.items():
                speeds[side].append(trial.total_steps / s)
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    ratios = sorted(t / h for t, h in zip(speeds["trial"], speeds["by hand"], strict=True))
    print(
        f"{trial.task.name} {trial.optimizer.name}: trial {medians['trial']:.1f} steps/s, by hand "
        f"{medians['by hand']:.1f} steps/s, ratio {medians['trial'] / medians['by hand']:.3f} "
        f"(of {rounds} pairs: median {statistics.median(ratios):.3f}, "
        f"from {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def compare_batches(trial: Trial, rounds: int) -> None:
    """Prints milliseconds per step and trial, alone and in batches, which run in turn."""
    mesh = devices.make_mesh(jax.device_count())
    seconds: dict[int, list[float]] = {n: [] for n in (0, *SIZES)}
    memory: dict[int, str] = {}
    for number in range(rounds + 1):
        found = {0: timed_trial(trial)}
        for n in SIZES:
            with jax.set_mesh(mesh):
                there = dataclasses.replace(trial, problem=open_problem(trial.task, trial.protocol))
                found[n], arrays = timed_batch(there, n)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            memory.setdefault(n, f"{arrays / 1e6:.0f} MB, process {peak:.0f} MiB")
        if number:  # the first round warms up
            for n, s in found.items():
                seconds[n].append(s / max(1, n) / trial.total_steps * 1e3)
    alone = statistics.median(seconds[0])
    print(f"{trial.task.name} {trial.optimizer.name}: alone {alone:.2f} ms per step")
    for n in SIZES:
        ratios = sorted(a / b for a, b in zip(seconds[0], seconds[n], strict=True))
        print(
            f"  one of {n:2}: {statistics.median(seconds[n]):.3f} ms, 1/{statistics.median(ratios):.2f} "
            f"(of {rounds} rounds: 1/{ratios[0]:.2f} to 1/{ratios[-1]:.2f}); {memory[n]}"
        )


def timed_batch(trial: Trial, n: int) -> tuple[float, int]:
    """Seconds on the clock of a batch of n that differ in the learning rate; bytes on all devices."""
    rate = trial.optimizer.hyperparameters.get("learning_rate")
    if type(rate) is not float:
        raise RequestError(
            f"--opt {trial.optimizer.name}: it has no learning_rate, in which trials of a batch differ"
        )
    trials = [
        dataclasses.replace(
            trial,
            optimizer=dataclasses.replace(
                trial.optimizer,
                hyperparameters={
                    **trial.optimizer.hyperparameters,
                    "learning_rate": rate * (i + 1) / n,
                },
            ),
        )
        for i in range(n)
    ]
    with tempfile.TemporaryDirectory() as out:
        for _ in iterate_batch(trials, Path(out)):
            pass
        end = records.read(trials[0].record_path(Path(out))).end
    assert end is not None
    _, lessons = compile_lessons(trial.problem, due_steps(trial.task, trial.total_steps)[1])
    groups, _ = compile_groups(trials, lessons)
    return float(end["ledger"]["train_s"]), sum(needs(groups, lessons)) * jax.device_count()


def timed_trial(trial: Trial) -> float:
    """Seconds on the clock of a whole trial."""
    with tempfile.TemporaryDirectory() as out:
        for _ in iterate(trial, Path(out)):
            pass
        end = records.read(trial.record_path(Path(out))).end
    assert end is not None
    return float(end["ledger"]["train_s"])


class HandWritten:
    """The same lessons and steps in one jitted loop, as one would write it for this task alone."""

    def __init__(self, trial: Trial) -> None:
        problem = trial.problem
        self._data, self._key = problem.source.data, trial.keys().lessons
        optimizer = trial.optimizer.build(trial.total_steps, **trial.optimizer.hyperparameters)

        def loop(params: Any, opt_state: Any, steps: Any, data: Any, key: Any) -> Any:
            def step(i: Any, carry: Any) -> Any:
                params, opt_state, _ = carry
                lesson = problem.make_lesson(data, key, i)
                # With its value, 2 % of a step on `digits`: a loop written by hand would print its loss.
                value, grads = jax.value_and_grad(problem.loss)(params, lesson)
                updates, opt_state = optimizer.update(grads, opt_state, params)
                return optax.apply_updates(params, updates), opt_state, value

            return jax.lax.fori_loop(0, steps, step, (params, opt_state, 0.0))

        self._loop = jax.jit(loop)
        self._params = problem.init(random.key(0))
        self._opt_state = optimizer.init(self._params)
        self.run(1)  # compiles

    def run(self, steps: int) -> float:
        """Seconds for that many steps."""
        begun = time.perf_counter()
        jax.block_until_ready(self._loop(self._params, self._opt_state, steps, self._data, self._key))
        return time.perf_counter() - begun
