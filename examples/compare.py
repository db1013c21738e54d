"""Two optimizers compared from Python: trials, records, a figure and the speed-up.

python examples/compare.py [STEPS [SEEDS]]
"""

import sys

import optax

from analysis import figures, frames
from analysis.statistics import speedups, trials
from testbed import TASKS, Trial, open_problem, run


def lion(total_steps: int, *, learning_rate: float = 0.003) -> optax.GradientTransformation:
    """An optimizer of one's own; its keyword-only arguments are its hyperparameters."""
    return optax.lion(optax.cosine_decay_schedule(learning_rate, total_steps))


def main(steps: int = 1_000, seeds: int = 5) -> None:
    """Runs what is not finished of the comparison in runs/, and writes its figure."""
    problem = open_problem(TASKS["digits"])
    for seed in range(seeds):
        for optimizer in (lion, "adam"):
            record = run(Trial(problem, optimizer, steps, seed), "runs")
            print(record.header["optimizer"], seed, record.measurements[-1]["validation_kl"])
    frame, _ = frames.load("runs")
    figures.time_to_accuracy(frame).savefig("time-to-accuracy.png")
    table = speedups.speedups(trials.trials(frame), "adam")
    print(table[["label", "over", "axis", "speedup", "low", "high", "n"]].to_string(index=False))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
