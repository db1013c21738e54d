"""Time of an update of our Shampoo and of Google's with the same settings, in turn, in one run.

    python benchmarks/results/shampoo_and_google.py --shapes mlp
    python benchmarks/results/shampoo_and_google.py --shapes r50x1     # ten minutes, mostly compilation

Settings: blocks of 128, axes merged up to 4096, averaged statistics (0.95), ridge 1e-6, SGD grafting,
Nesterov momentum 0.9 after the preconditioner, roots from the first step on. Ours with all roots at
once, as Google's, and staggered.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.commands import choose, serve
from benchmarks.optimizer_cost import SHAPES, normal_like
from optimizers.distributed_shampoo import scale_by_distributed_shampoo
from optimizers.shampoo import scale_by_shampoo
from testbed import provenance

MLP = {f"dense{i}": {"kernel": jax.ShapeDtypeStruct((128, 128), "float32"),
                     "bias": jax.ShapeDtypeStruct((128,), "float32")} for i in range(3)}  # fmt: skip


def main() -> None:
    """Times and prints."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--shapes", default="mlp", metavar="NAME", help="mlp (default) or r50x1")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = p.parse_args()
    params = choose("--shapes", args.shapes, {"mlp": lambda: MLP, "r50x1": SHAPES["r50x1"]})()
    rounds = 1 if args.shapes == "r50x1" else 9
    for interval in [20] if args.shapes == "r50x1" else [1, 20]:
        sides = {
            "google": Side(google(interval), params),
            "ours": Side(ours(interval, stagger=False), params),
            "ours, staggered": Side(ours(interval, stagger=True), params),
        }
        for _ in range(rounds):
            for side in sides.values():
                side.round()
        theirs = np.array(sides["google"].means)
        for name, side in sides.items():
            steps = np.median(side.rounds, axis=0)
            print(
                f"{args.shapes}, roots every {interval}, {name}: mean {np.median(side.means):.3g} ms, "
                f"google's / this {np.median(theirs / side.means):.2f}, "
                f"slowest / median step {np.max(steps) / np.median(steps):.2f}, "
                f"compilation {side.compile_s:.1f} s",
                flush=True,
            )
    print(provenance.device()["processor"], provenance.versions())


def google(interval: int) -> optax.GradientTransformation:
    """Google's."""
    return scale_by_distributed_shampoo(
        graft_type="sgd",
        block_size=128,
        beta1=0.9,
        beta2=0.95,
        matrix_epsilon=1e-6,
        nesterov=True,
        preconditioning_compute_steps=interval,
        start_preconditioning_step=0,
    )


def ours(interval: int, *, stagger: bool) -> optax.GradientTransformation:
    """Ours, with Google's settings."""
    shampoo = scale_by_shampoo(
        b1=None,
        shampoo_b2=0.95,
        initial=1e-6,
        interval=interval,
        stagger=stagger,
        keep_last=False,
        ridge=1e-6,
        graft="sgd",
    )
    return optax.chain(shampoo, optax.trace(0.9, nesterov=True))


class Side:
    """A compiled update and its times, in milliseconds: per round and step."""

    def __init__(self, optimizer: optax.GradientTransformation, params: Any) -> None:
        self._params, self._grads = normal_like(params, 1), normal_like(params, 0)
        self._state = jax.jit(optimizer.init)(self._params)
        begun = time.perf_counter()
        self._update = (
            jax.jit(optimizer.update, donate_argnums=1)
            .lower(self._grads, self._state, self._params)
            .compile()
        )
        self.compile_s = time.perf_counter() - begun
        self.rounds: list[list[float]] = []
        self.round(1)
        self.rounds.clear()  # the first step warms up

    @property
    def means(self) -> list[float]:
        """Per round."""
        return [float(np.mean(steps)) for steps in self.rounds]

    def round(self, n: int = 20) -> None:
        """Twenty steps: roots every 1 or 20 of them are the same work in each round."""
        steps = []
        for _ in range(n):
            begun = time.perf_counter()
            updates, self._state = self._update(self._grads, self._state, self._params)
            jax.block_until_ready((updates, self._state))
            steps.append(1e3 * (time.perf_counter() - begun))
        self.rounds.append(steps)


if __name__ == "__main__":
    serve(main)
