"""Why `digits` is what it is: its choices, one changed at a time.

    python benchmarks/results/digits_design.py --out runs/design

For each variant, Adam and Shampoo, each with the better of the same two learning rates on validation KL,
at the short and the medium horizon, seed 0; and what a fixed teacher does to Adam. A good task separates
the optimizers, is not finished at the short horizon, and overfits with a fixed teacher alone. KL is on
the variant's own held-out views, at temperature 1.
"""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.runner import run_all
from benchmarks.trials import make_trial
from optimizers import registry
from testbed import records
from testbed.cli import Parser, serve
from testbed.data.views import AffineCrop
from testbed.models.mlp import MLP
from testbed.problem.problem import open_problem
from testbed.problem.task import Task
from testbed.tasks import TASKS

LEARNING_RATES = (0.0075, 0.015)
DIGITS = TASKS["digits"]
WIDE = AffineCrop(rotation=20.0, zoom=(0.7, 1.2), stretch=1.3, shift=0.12, fill=-1.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "temperature 1": {"temperature": 1.0},
    "temperature 4": {"temperature": 4.0},
    "student 2 x 256": {"student": MLP(widths=(256,) * 2, classes=10)},
    "batch 128": {"batch_size": 128},
    "wide crops": {"augment": WIDE},
}


def main() -> None:
    """Runs all variants and prints the table."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("runs/design"), metavar="DIR", help="records")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    out = p.parse_args().out
    print("| variant | adam, short | shampoo, short | adam, medium | fixed teacher: held-out / own KL |")
    print("|---|---|---|---|---|")
    for name, changes in VARIANTS.items():
        task = dataclasses.replace(DIGITS, name=f"digits-{name.replace(' ', '-')}", **changes)
        cells = [best(task, "adam", "short", out), best(task, "shampoo", "short", out)]
        cells += [best(task, "adam", "medium", out)]
        held_out, own = fixed_teacher(task, out)
        print(
            f"| {name} | {' | '.join(f'{c:.4f}' for c in cells)} | {held_out:.4f} / {own:.4f} |",
            flush=True,
        )


def best(task: Task, opt: str, horizon: str, out: Path) -> float:
    """The lowest final validation KL over the learning rates."""
    spec, steps = registry.find(opt), task.horizons[horizon]
    trials = [
        make_trial(open_problem(task), spec, steps, 0, {"learning_rate": rate})
        for rate in LEARNING_RATES
    ]
    ends = [records.read(path).measurements[-1]["validation_kl"] for path in run_all(trials, out)]
    return min(end for end in ends if end is not None)


def fixed_teacher(task: Task, out: Path) -> tuple[float, float]:
    """Held-out KL, and KL to its own lessons, at the end of the medium horizon."""
    trial = make_trial(
        open_problem(task, "fixed_teacher"),
        registry.find("adam"),
        task.horizons["medium"],
        0,
        {"learning_rate": 0.015},
    )
    end = records.read(run_all([trial], out)[0]).measurements[-1]
    return end["validation_kl"], end["train_kl"]


if __name__ == "__main__":
    serve(main)
