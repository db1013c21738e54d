"""Time of an update of our Shampoo and of Google's with the same settings, in turn, in one run.

    python benchmarks/results/shampoo_and_google.py --shapes mlp
    python benchmarks/results/shampoo_and_google.py --shapes r50x1     # ten minutes, mostly compilation

Settings: blocks of 128, axes merged up to 4096, averaged statistics (0.95), ridge 1e-6, SGD grafting,
Nesterov momentum 0.9 after the preconditioner, roots from the first step on. Ours with all roots at
once, as Google's, and staggered.
"""

import jax
import numpy as np
import optax
from numpy.typing import NDArray

from benchmarks.optimizer_cost import CYCLE, SHAPES, Cost, make_inputs, slowest
from optimizers.distributed_shampoo import scale_by_distributed_shampoo
from optimizers.shampoo import scale_by_shampoo
from testbed import provenance
from testbed.cli import Parser, serve
from testbed.errors import choose

MLP = {f"dense{i}": {"kernel": jax.ShapeDtypeStruct((128, 128), "float32"),
                     "bias": jax.ShapeDtypeStruct((128,), "float32")} for i in range(3)}  # fmt: skip


def main() -> None:
    """Times and prints."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--shapes", default="mlp", metavar="NAME", help="mlp (default) or r50x1")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = p.parse_args()
    params = choose("--shapes", args.shapes, {"mlp": lambda: MLP, "r50x1": SHAPES["r50x1"]})()
    inputs, rounds = make_inputs(params), 1 if args.shapes == "r50x1" else 9
    for interval in [20] if args.shapes == "r50x1" else [1, 20]:
        sides = [
            Cost("google", google(interval), inputs),
            Cost("ours", ours(interval, stagger=False), inputs),
            Cost("ours, staggered", ours(interval, stagger=True), inputs),
        ]
        for _ in range(rounds):
            for side in sides:
                side.round()
        theirs = means(sides[0])
        for side in sides:
            found = means(side)
            print(
                f"{args.shapes}, roots every {interval}, {side.name}: mean {np.median(found):.3g} ms, "
                f"google's / this {np.median(theirs / found):.2f}, slowest / median step "
                f"{slowest(side.seconds) / np.median(side.seconds):.2f}, "
                f"compilation {side.compile_s:.1f} s",
                flush=True,
            )
    print(provenance.device()["processor"], provenance.versions())


def means(side: Cost) -> NDArray[np.float64]:
    """Milliseconds of a step, mean of each round: every round does the same work."""
    return 1e3 * np.mean(np.reshape(side.seconds, (-1, CYCLE)), axis=1)


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


if __name__ == "__main__":
    serve(main)
