"""Measures what an update costs: time, compilation, FLOPs and memory, as ratios to Adam's.

    python benchmarks/optimizer_cost.py --out cost
    python benchmarks/optimizer_cost.py --shapes r50x1 --opt shampoo --opt distributed_shampoo

On gradients of independent normal entries. Optimizers run in turn, round after round, so that the
machine's load affects all. The update alone is timed: where a method asks for more gradients
(`sam`, `lbfgs`, `sgd_line_search`, `sophia`), it gets those of a function that costs nothing. On
`digits` the whole training step is timed too, with lesson and all gradients. Adam is always there.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.optimizer_cost")

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pandas as pd
from jax import random
from matplotlib import pyplot as plt

from analysis.output.files import replacing, write_csv
from benchmarks.flops import flops
from benchmarks.trials import make_trial
from optimizers import registry, shampoo
from optimizers.parts import blocks
from testbed import provenance
from testbed.cli import Parser, add_debug_option, count, require_writable
from testbed.errors import RequestError, choose
from testbed.models.bit import bit
from testbed.problem.lessons import make_keys
from testbed.problem.problem import open_problem
from testbed.tasks import TASKS

CYCLE = 20  # steps of a round: every optimizer renews within it all that it renews at all
GRADIENTS = 4


def main() -> None:
    """Times all, prints the tables, writes table and figure."""
    args = parser().parse_args()
    names = list(dict.fromkeys(["adam", *(args.opt or registry.registered())]))
    specs = registry.find_all(names)
    shapes = {name: choose("--shapes", name, SHAPES) for name in args.shapes or SHAPES}
    if args.out is not None:
        require_writable("--out", args.out)
    rows: list[dict[str, Any]] = []
    for name, make in shapes.items():
        params = make()
        # A round of the largest shapes takes minutes, and noise is small beside that.
        rounds = 1 if name == "r50x1" else args.rounds
        inputs = make_inputs(params)
        costs = [Cost(spec.name, spec.build(1000), inputs) for spec in specs]
        for _ in range(rounds):
            for cost in costs:
                cost.round()
        steps = whole_steps(name, names, rounds) if name == "digits" else {}
        rows += table(name, params, costs, steps)
        print(markdown(pd.DataFrame([row for row in rows if row["shapes"] == name])), flush=True)
        print(pieces_line(name, params), flush=True)
        if name == "r50x1":
            print(share_of_step(costs))
        if args.out is not None:
            with replacing("--out", args.out) as new:
                write_csv(pd.DataFrame(rows), new / "optimizer_cost.csv")
                figure(pd.DataFrame(rows), new / "optimizer-cost.png")
        # Dozens of compiled programs come near the number of memory maps that Linux gives a process.
        del costs
        jax.clear_caches()
    where = provenance.device()
    print(f"{where['platform']}, {where['processor']}; " + str(provenance.versions()))


# What is updated


def _student(task: str) -> Any:
    return jax.eval_shape(open_problem(TASKS[task]).init, random.key(0))


R50X1 = bit("R50x1", 1000)
BATCH = jax.ShapeDtypeStruct((512, 128, 128, 3), jnp.float32)  # the paper's, for its small sets


def _r50x1() -> Any:
    """The paper's student for ImageNet."""
    return jax.eval_shape(R50X1.init, random.key(0), BATCH)["params"]


SHAPES: Mapping[str, Callable[[], Any]] = {
    "digits": lambda: _student("digits"),
    "digits-resnet": lambda: _student("digits-resnet"),
    "r50x1": _r50x1,
}


def normal_like(params: Any, seed: int) -> Any:
    """A tree of independent normal entries."""
    leaves, tree = jax.tree.flatten(params)
    keys = random.split(random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


class Inputs(NamedTuple):
    """What updates are timed on; the same arrays for all optimizers."""

    params: Any
    grads: tuple[Any, ...]


def make_inputs(params: Any) -> Inputs:
    """Parameters and gradients, of normal entries, for a tree of shapes."""
    return Inputs(
        normal_like(params, GRADIENTS), tuple(normal_like(params, i) for i in range(GRADIENTS))
    )


# What it costs


class Cost:
    """An optimizer's compiled update, and the seconds that its steps took."""

    def __init__(self, name: str, optimizer: optax.GradientTransformation, inputs: Inputs) -> None:
        self.name, self.seconds, self._inputs = name, list[float](), inputs
        full = optax.with_extra_args_support(optimizer)

        def update(grads: Any, state: Any, params: Any, key: Any) -> Any:
            return full.update(grads, state, params, **free_of_cost(grads, params, key))

        self._state = jax.jit(full.init)(inputs.params)
        arguments = (inputs.grads[0], self._state, inputs.params, random.key(0))
        self.flops = flops(jax.make_jaxpr(update)(*arguments).jaxpr)
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self._state))
        begun = time.perf_counter()
        self._update = jax.jit(update, donate_argnums=1).lower(*arguments).compile()
        self.compile_s = time.perf_counter() - begun
        self.round(1)
        self.seconds.clear()  # the first step warms up

    def round(self, steps: int = CYCLE) -> None:
        """Takes and times a cycle of steps."""
        for i in range(steps):
            grads, key = self._inputs.grads[i % GRADIENTS], random.key(i)
            begun = time.perf_counter()
            updates, self._state = self._update(grads, self._state, self._inputs.params, key)
            jax.block_until_ready((updates, self._state))
            self.seconds.append(time.perf_counter() - begun)


def free_of_cost(grads: Any, params: Any, key: Any) -> dict[str, Any]:
    """optax's extra arguments, of a function that is linear in the parameters."""

    def value_fn(p: Any, key: Any = None, logits_fn: Any = None) -> Any:
        del key, logits_fn
        return optax.tree.vdot(p, grads)

    def logits_fn(p: Any) -> Any:
        return jnp.stack([value_fn(p), 0.0])[None]

    return {
        "value": value_fn(params),
        "grad": grads,
        "value_fn": value_fn,
        "logits_fn": logits_fn,
        "key": key,
    }


def whole_steps(task: str, names: Sequence[str], rounds: int) -> dict[str, float]:
    """Optimizer -> median seconds of a training step of a task."""
    problem, running = open_problem(TASKS[task]), {}
    data = problem.source.data
    for name in names:
        trial = make_trial(problem, registry.find(name), 1000, 0, {})
        programs, hp = trial.compile(), trial.optimizer.hyperparameters
        traced = {key: np.float32(hp[key]) for key in programs.hyperparameters}
        running[name] = (programs, traced, programs.init(make_keys(0), traced, None))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, (programs, traced, state) in running.items():
            stop = np.int32((number + 1) * 2 * CYCLE)
            begun = time.perf_counter()
            state = jax.block_until_ready(programs.advance(state, stop, data, make_keys(0), traced))
            if number:
                seconds[name].append((time.perf_counter() - begun) / (2 * CYCLE))
            running[name] = (programs, traced, state)
    for name, (_, _, state) in running.items():
        if not state.finite:  # it stands still, which costs nothing
            raise RequestError(f"--opt {name}: it diverges on {task}; there is no step to time")
    return {name: statistics.median(times) for name, times in seconds.items()}


def pieces_line(name: str, params: Any) -> str:
    """Where the time of a Shampoo update goes, by timing its pieces alone."""
    config = shampoo.Config(
        accumulate="average",
        update_every=CYCLE,
        stagger=True,
        root_order=0,
        relative=True,
        method="auto",
    )
    layout = blocks.cut([leaf.shape for leaf in jax.tree.leaves(params)], 128, 4096, 8192)
    traced = shampoo.Traced(jnp.int32(0), jnp.float32(0.95), jnp.float32(1e-6))
    leaves = jax.tree.leaves(normal_like(params, 0))
    stacks = jax.jit(lambda x: blocks.gather(x, layout))(leaves)
    kept = [shampoo.start_of(stack, 8192, 1.0) for stack in layout.stacks]
    pieces: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "cut and stack": (lambda x: blocks.gather(x, layout), (leaves,)),
        "statistics": (lambda s, k: shampoo.renew_statistics(config, traced, s, k), (stacks, kept)),
        "roots": (lambda n, k: shampoo.renew(config, layout.stacks, n, k), (traced, kept)),
        "apply": (lambda s, k: shampoo.precondition_all(config, traced, s, k), (stacks, kept)),
        "put together": (lambda s, x: blocks.scatter(s, x, layout), (stacks, leaves)),
    }
    found = {piece: _median_ms(f, *a) for piece, (f, a) in pieces.items()}
    return f"{name}, pieces of Shampoo, ms: " + ", ".join(f"{k} {v:.3g}" for k, v in found.items())


def _median_ms(f: Callable[..., Any], *arguments: Any) -> float:
    compiled, seconds = jax.jit(f).lower(*arguments).compile(), []
    for _ in range(8):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(seconds[1:])


def step_flops() -> float:
    """Of R50x1's forward and backward passes for a batch of the paper's, without the teacher's."""
    params = jax.eval_shape(R50X1.init, random.key(0), BATCH)
    return 3 * flops(jax.make_jaxpr(R50X1.apply)(params, BATCH).jaxpr)


def share_of_step(costs: Sequence[Cost]) -> str:
    """FLOPs of updates, as shares of those of the student's forward and backward passes."""
    step = step_flops()
    shares = ", ".join(f"{cost.name} {cost.flops / step:.2%}" for cost in costs)
    return f"r50x1, a step of 512 images: {step / 1e12:.3g} TFLOP, of which an update is {shares}"


# Tables


def table(
    shapes: str, params: Any, costs: Sequence[Cost], steps: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One row per optimizer."""
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    base = next(cost for cost in costs if cost.name == "adam")
    return [
        {
            "shapes": shapes,
            "optimizer": cost.name,
            "mean_ms": 1e3 * statistics.mean(cost.seconds),
            "median_ms": 1e3 * statistics.median(cost.seconds),
            "slowest_over_median": slowest(cost.seconds) / statistics.median(cost.seconds),
            "mean_over_adam": statistics.mean(cost.seconds) / statistics.mean(base.seconds),
            "step_over_adam": steps[cost.name] / steps["adam"] if steps else math.nan,
            "compile_s": cost.compile_s,
            "state_bytes_per_parameter": cost.state_bytes / size,
            "mflop": cost.flops / 1e6,
        }
        for cost in costs
    ]


def slowest(seconds: Sequence[float]) -> float:
    """The slowest step of a cycle, by medians over cycles: a lone stall is not the method's."""
    return float(np.max(np.median(np.reshape(seconds, (-1, CYCLE)), axis=0)))


def markdown(frame: pd.DataFrame) -> str:
    """A table for reading."""
    columns = {
        "optimizer": "optimizer",
        "mean_over_adam": "update / Adam's",
        "step_over_adam": "whole step / Adam's",
        "mean_ms": "update, ms",
        "slowest_over_median": "slowest / median",
        "compile_s": "compile, s",
        "state_bytes_per_parameter": "state, bytes per parameter",
        "mflop": "MFLOP",
    }
    kept = {k: v for k, v in columns.items() if not frame[k].isna().all()}
    lines = [f"| {' | '.join(kept.values())} |", "|" + "---|" * len(kept)]
    for row in frame.to_dict("records"):
        cells = [f"`{row[k]}`" if k == "optimizer" else f"{row[k]:.3g}" for k in kept]
        lines.append(f"| {' | '.join(cells)} |")
    return f"\n{frame['shapes'].iloc[0]}\n\n" + "\n".join(lines)


def figure(frame: pd.DataFrame, path: Path) -> None:
    """Update times over Adam's, per optimizer and shapes."""
    mpl.use("agg")
    names = list(frame["shapes"].unique())
    order = frame.groupby("optimizer")["mean_over_adam"].median().sort_values().index
    drawn, axes = plt.subplots(figsize=(6, 0.3 * len(order) + 1.2), layout="constrained")
    for name, marker, colour in zip(names, "os^", ("#0072B2", "#D55E00", "#009E73"), strict=False):
        part = frame[frame["shapes"] == name].set_index("optimizer").reindex(order)
        axes.plot(part["mean_over_adam"], range(len(order)), marker, color=colour, label=name)
    axes.set_yticks(range(len(order)), order)
    axes.set_xscale("log")
    axes.axvline(1, color="0.6", linewidth=0.8)
    axes.set_xlabel("time of an update / Adam's")
    axes.legend(frameon=False)
    axes.grid(axis="x", alpha=0.3)
    drawn.savefig(path, dpi=150)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", action="append", metavar="NAME", help="default: all")
    p.add_argument(
        "--shapes", action="append", metavar="NAME", help=f"of {', '.join(SHAPES)}; default: all"
    )
    p.add_argument("--rounds", type=count, default=5, metavar="N", help="default: %(default)s")
    p.add_argument("--out", type=Path, metavar="DIR", help="for the table (CSV) and the figure")
    add_debug_option(p)
    return p
