"""Whether intervals cover the truth as often as they say: simulated experiments whose truth is known.

    python benchmarks/results/coverage.py --experiments 1000

An experiment has n seeds of a baseline and of an optimizer that is SPEEDUP times faster. The log of a
trial's steps to the target is a constant, plus a draw that both optimizers share on that seed, plus a
draw of its own; it is seen at the next measurement, or not at all where the horizon comes first.
The horizon is such that a given share of the baseline's trials miss the target. Trials are as
`analysis.statistics.trials.trials` gives them, and go through `speedups`.

Beside it, what is often done: misses dropped, and a percentile bootstrap of the mean log ratio.
"""

import argparse
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics.matched_quality import matched_quality
from analysis.statistics.speedups import speedups

TABLE = Path(__file__).with_suffix(".csv")
SPEEDUP = 1.5
SHARED, OWN = 0.15, 0.15  # standard deviations of log steps: of a seed, and of a trial on it
MEDIAN = 1000  # steps of the baseline to the target
CADENCES = (20, 100)  # steps from measurement to measurement
NOISES = ("normal", "heavy-tailed", "skewed")
Array = NDArray[np.float64]


def main() -> None:
    """Simulates every case, prints and writes the table."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--experiments", type=int, default=1000, metavar="N", help="default: %(default)s")
    p.add_argument("--table", type=Path, default=TABLE, metavar="PATH", help="default: beside this file")
    args = p.parse_args()
    if args.experiments < 1:
        sys.exit(f"coverage.py: --experiments {args.experiments}: must be 1 or more")
    rows = []
    for seeds in (5, 10, 20):
        for noise in NOISES:
            for missing in (0.0, 0.2, 0.4):
                rows.append(case(args.experiments, seeds, noise, missing))
                print(rows[-1], flush=True)
    for missing in (0.0, 0.2, 0.4):
        rows.append(case(args.experiments, 5, "normal", missing, cadence=CADENCES[1]))
        rows.append(case(args.experiments, 10, "normal", missing, paired=False))
    rows += [matched_case(args.experiments, seeds) for seeds in (5, 10)]
    table = pd.DataFrame(rows)
    table.to_csv(args.table, index=False, float_format="%.4g")
    print(table.to_string(index=False))
    paired = table[(table["interval"] == "speed-up") & (table["cadence"] == CADENCES[0])]
    for name, some in paired.groupby(paired["missed by the baseline"] > 0):
        found = some[["covers", "A/A called different"]].mean()
        print(
            f"{len(some) * args.experiments} experiments {'with' if name else 'without'} misses: covers "
            f"{found['covers']:.1%}, A/A called different {found['A/A called different']:.1%}"
        )


def case(
    experiments: int,
    seeds: int,
    noise: str,
    missing: float,
    *,
    cadence: int = CADENCES[0],
    paired: bool = True,
) -> dict[str, object]:
    """How often intervals of a speed-up cover it, and how often an optimizer differs from itself."""
    of = partial(simulate, experiments, seeds, noise, missing, cadence=cadence, paired=paired)
    faster = of(SPEEDUP)
    found = _steps(speedups(faster, "base"))
    same = _steps(speedups(of(1.0), "base"))
    interval = "speed-up" if paired else "speed-up, unpaired"
    named = {"interval": interval, "seeds": seeds, "noise": noise, "cadence": cadence}
    dropped = {"dropped and bootstrapped covers": _bootstrap_covers(faster)}
    return named | {"missed by the baseline": missing} | _outcome(found, same) | dropped


def matched_case(experiments: int, seeds: int) -> dict[str, object]:
    """The same of the speed-up at matched quality, for curves that interpolation knows exactly."""
    found = matched_quality(simulate_horizons(experiments, seeds, SPEEDUP), "base")
    found = found[found["horizon"] == HORIZONS[1]]
    same = matched_quality(simulate_horizons(experiments, seeds, 1.0), "base")
    same = same[same["horizon"] == HORIZONS[1]]
    named = {"interval": "matched quality", "seeds": seeds, "noise": "normal"}
    return named | {"missed by the baseline": 0.0} | _outcome(found, same)


def _outcome(found: pd.DataFrame, same: pd.DataFrame) -> dict[str, object]:
    """Of intervals of one that is SPEEDUP times faster, and of one that is not."""
    return {
        "covers": _covered(found, SPEEDUP),
        "A/A called different": 1 - _covered(same, 1.0),
        "median high / low": float((found["high"] / found["low"]).median()),
    }


def simulate(
    experiments: int,
    seeds: int,
    noise: str,
    missing: float,
    speedup: float,
    *,
    cadence: int = CADENCES[0],
    paired: bool = True,
) -> pd.DataFrame:
    """Trials as `analysis.statistics.trials.trials` gives them; each experiment is a task of its own."""
    rng = np.random.default_rng([seeds, NOISES.index(noise), round(100 * missing), round(100 * speedup)])
    shape = (experiments, seeds)
    of_seed = [SHARED * _draw(rng, noise, shape) for _ in range(2)]
    if paired:
        of_seed[1] = of_seed[0]
    logs = np.stack([shared + OWN * _draw(rng, noise, shape) for shared in of_seed])
    steps = MEDIAN * np.exp(logs) / np.array([1.0, speedup])[:, None, None]
    horizon = _horizon(steps, missing, cadence)
    seen = np.ceil(steps / cadence) * cadence
    seen = np.where(seen > horizon, np.nan, seen)
    side, task, seed = (index.ravel() for index in np.indices(steps.shape))
    optimizer = np.array(["base", "other"])[side]
    return pd.DataFrame(
        {
            "task": task,
            "protocol": "simulated",
            "total_steps": horizon,
            "optimizer": optimizer,
            "label": optimizer,
            "optimizer_name": optimizer,
            "target_metric": "simulated",
            "target_mode": "min",
            "target_value": 0.0,
            "seed": seed if paired else seed + seeds * side,
            "lessons": "",
            "score": 0.0,
            "steps_to_target": seen.ravel(),
            "steps_watched": horizon,
            "steps_cadence": cadence,
            **dict.fromkeys(("seconds_to_target", "seconds_watched", "seconds_cadence"), np.nan),
        }
    )


HORIZONS = (500, 2000, 8000)


def simulate_horizons(experiments: int, seeds: int, speedup: float) -> pd.DataFrame:
    """Trials of three horizons: the log of KL falls in proportion to the log of steps."""
    rng = np.random.default_rng([seeds, round(100 * speedup)])
    shape = (2, experiments, seeds, len(HORIZONS))
    of_seed = 0.05 * rng.normal(size=(1, experiments, seeds, 1))
    steps = np.array(HORIZONS) * np.array([1.0, speedup])[:, None, None, None]
    kl = steps**-0.4 * np.exp(of_seed + 0.05 * rng.normal(size=shape))
    side, task, seed, horizon = (index.ravel() for index in np.indices(shape))
    optimizer = np.array(["base", "other"])[side]
    return pd.DataFrame(
        {
            "task": task,
            "protocol": "simulated",
            "total_steps": np.array(HORIZONS)[horizon],
            "optimizer": optimizer,
            "label": optimizer,
            "optimizer_name": optimizer,
            "seed": seed,
            "score": 0.0,
            "final": kl.ravel(),
            "decides": "simulated",
            "lessons": "",
        }
    )


def _draw(rng: np.random.Generator, noise: str, shape: tuple[int, ...]) -> Array:
    """Mean 0, standard deviation 1."""
    if noise == "normal":
        return rng.normal(size=shape)
    if noise == "heavy-tailed":
        return rng.standard_t(3, size=shape) / np.sqrt(3)
    return rng.exponential(size=shape) - 1


def _horizon(steps: Array, missing: float, cadence: int) -> int:
    """That share of the baseline's trials comes later."""
    if not missing:
        return cadence * math.ceil(steps.max() / cadence)
    return cadence * math.ceil(np.quantile(steps[0], 1 - missing) / cadence)


def _steps(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["axis"] == "steps"]


def _covered(table: pd.DataFrame, truth: float) -> float:
    return float(((table["low"] <= truth) & (truth <= table["high"])).mean())


def _bootstrap_covers(ends: pd.DataFrame) -> float:
    """Pairs with a miss dropped, then a percentile bootstrap; experiments without pairs are left out."""
    rng = np.random.default_rng(0)
    wide = ends.pivot_table(index=["task", "seed"], columns="optimizer", values="steps_to_target")
    logs = (wide["base"] / wide["other"]).dropna().map(np.log)
    if logs.empty:  # unpaired
        return np.nan
    covered = []
    for _, group in logs.groupby("task"):
        values = group.to_numpy()
        means = values[rng.integers(0, len(values), (1000, len(values)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        covered.append(low <= np.log(SPEEDUP) <= high)
    return float(np.mean(covered))


if __name__ == "__main__":
    main()
