"""Checks a claim of the paper: runs, figure, verdict.

    python benchmarks/study.py consistency

consistency: with teachers that see the same view as the student there is no overfitting; with a
fixed teacher there is (Beyer et al. 2021).
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.study")

from pathlib import Path

import pandas as pd

from analysis import figures, frames
from analysis.output.files import replacing, safe, write_csv
from analysis.statistics import summary
from analysis.statistics.summary import Estimate
from benchmarks.runner import run_all
from benchmarks.trials import add_task_options, choose_task, hyperparameters, make_trial
from optimizers import registry
from testbed.cli import Parser, add_debug_option, count, require_writable
from testbed.problem.problem import open_problem

RISE = 1.05  # the lowest of a hundred noisy measurements lies a little below the last by chance


def main() -> None:
    """Runs the study."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("study", choices=["consistency"], help="the claim")
    p.add_argument("--opt", default="adam", metavar="NAME", help="optimizer; default: %(default)s")
    p.add_argument("--seeds", type=count, default=5, metavar="N", help="default: %(default)s")
    p.add_argument("--out", type=Path, default=Path("runs/consistency"), metavar="DIR", help="records")
    p.add_argument("--report", type=Path, default=Path("report"), metavar="DIR", help="figure and table")
    add_debug_option(p)
    add_task_options(p, protocol=False)
    p.set_defaults(horizon="medium")
    args = p.parse_args()
    require_writable("--out", args.out)
    require_writable("--report", args.report)
    task, steps, published = choose_task(args)
    spec = registry.find(args.opt)
    hp = hyperparameters(spec, [spec], [], published.get(spec.name, {}))
    trials = [
        make_trial(open_problem(task, protocol), spec, steps, seed, hp)
        for protocol in ("fixed_teacher", "function_matching")
        for seed in range(args.seeds)
    ]
    paths = set(run_all(trials, args.out))
    frame, _ = frames.load(args.out)
    run_ids = {path.stem for path in paths}
    frame = frame[frame["run_id"].isin(run_ids)].reset_index(drop=True)
    frame["label"] = frame["protocol"]
    name = f"consistency-{safe(task.name)}-{steps}"
    measured = overfitting(frame)
    table = pd.DataFrame(measured.values(), index=pd.Index(measured)).map(str)
    with replacing("--report", args.report) as new:
        figures.save(figures.overfitting(frame), new, name)
        write_csv(table.rename_axis("protocol").reset_index(), new / f"{name}.csv")
    print(table.T.to_string())
    rises = {protocol: estimates["rise"] for protocol, estimates in measured.items()}
    print(verdict(rises["fixed_teacher"], rises["function_matching"]))


def overfitting(frame: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """Per protocol, medians over seeds with intervals.

    gap: held-out KL / training KL at the end; gap at a quarter: the same after a quarter of the steps;
    rise: held-out KL at the end / the lowest along the way (above 1: it went up again).
    """
    rows = {}
    for protocol, of_protocol in frame.groupby("protocol"):
        values = []
        for _, trial in of_protocol.groupby("seed"):
            curve = trial.set_index("step").sort_index()
            held_out, training = curve["validation_kl"], curve["train_kl"]
            quarter = held_out.index[held_out.index >= held_out.index[-1] / 4][0]
            values.append(
                {
                    "held-out KL": held_out.iloc[-1],
                    "training KL": training.iloc[-1],
                    "gap": held_out.iloc[-1] / training.iloc[-1],
                    "gap at a quarter": held_out[quarter] / training[quarter],
                    "rise": held_out.iloc[-1] / held_out.min(),
                }
            )
        measured = pd.DataFrame(values)
        rows[str(protocol)] = {str(name): summary.estimate(measured[name]) for name in measured}
    return rows


def verdict(fixed: Estimate, matching: Estimate) -> str:
    """Whether the claim holds, from the two protocols' rise.

    A protocol overfits where the whole interval lies above RISE, and does not where it lies below.
    """
    why = f"n = {fixed.n}; held-out KL ends at {fixed} and {matching} times its lowest"
    if fixed.low > RISE and matching.high < RISE:
        return f"The claim holds: fixed_teacher overfits, function_matching does not ({why})."
    if fixed.high < RISE or matching.low > RISE:
        return f"The claim does not hold ({why})."
    return f"Undecided: an interval contains {RISE} ({why})."
