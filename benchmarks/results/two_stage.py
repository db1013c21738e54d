"""How often the two-stage rule's intervals cover: simulated comparisons whose truth is known.

    python benchmarks/results/two_stage.py --experiments 2000

A block has some students of each of two optimizers. A student's log metric is the curve of its
optimizer, plus an effect of the block's lessons on all of its students, plus luck of its own. The scale
is such that a block's log ratio of steps has a given spread. A pilot of PILOT blocks decides how many
there are in all, with or without a cap, and `analysis.statistics.crowds.two_stage` gives the interval.

What is known of horizons and exponents when blocks are compared:
`known`: all, as the rule assumes. `scouting alone`: what a ladder of horizons with SCOUTS students each
says; it has errors that no spread of blocks shows. `refined`, as in `benchmarks.comparison`: the pilot
becomes one more rung, exponents and horizons are found anew, and the interval counts the error of the
exponents. Both with the cap alone; horizons are rounded to a grid, and curves may bend. (There, the
scouts also choose how many students a block has; here it is fixed.)

`diverging`: one student in DIVERGES of the first optimizer ends where it began, the others are normal.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics import crowds
from analysis.statistics.crowds import Curve
from analysis.statistics.ratio import Ratio

TABLE = Path(__file__).with_suffix(".csv")
PRECISION = 1.05
PILOT = 6
CAP = 64  # blocks in all
SPREADS = (0.02, 0.05, 0.1, 0.2, 0.4)
RATIOS = (1.0, 1.05, 1.5)
NOISES = ("normal", "heavy-tailed", "skewed", "diverging")
LESSONS = 0.5  # standard deviation of the effect of lessons, in those of a student's own luck
EXPONENTS = (0.22, 0.30)  # with which the metrics of the two fall in steps, where they are known
EXPONENT = 0.25  # of both, where it is not: so that their ratio is the same at any quality
BENDS = (-0.2, 0.0, 0.2)  # of curves: their exponent is greater by the factor 1 + 2 bend log(T / H)
DIVERGES, DISTANCE = 200, 30.0  # one in how many; how far away, in standard deviations of the others
STEP = math.log(2) / 2
LADDER = STEP * np.arange(-8.0, 5.0)  # log steps from H: what may be scouted
SCOUTS = 6  # students of each optimizer at a rung of the ladder
MANY = 32  # of them, where more are scouted
GRID = math.log(2) / 16  # of horizons, in log steps
FARTHEST = 0.7  # in log steps: from where the pilot ran to where the blocks after it do
FIRST = (6, 10)  # rungs of it that are scouted at once: H / 2 to sqrt(2) H
Array = NDArray[np.float64]


class Case(NamedTuple):
    """A kind of comparison."""

    plan: str  # "known", "scouting alone", "refined"
    noise: str
    students: int  # of each optimizer in a block
    spread: float  # of a block's log ratio
    ratio: float  # the first optimizer's steps over the second's
    bend: float = 0.0
    scouts: int = SCOUTS  # students of each optimizer at a rung of the ladder

    @property
    def exponents(self) -> tuple[float, float]:
        """Of both optimizers at H."""
        return EXPONENTS if self.plan == "known" else (EXPONENT, EXPONENT)


class Plan(NamedTuple):
    """Where an optimizer will run, and what is known of it."""

    curve: Curve
    log_steps: float  # from H: there it has the quality
    exponent: float


def main() -> None:
    """Simulates every case, prints and writes the table."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--experiments", type=int, default=2000, metavar="N", help="default: %(default)s")
    p.add_argument("--table", type=Path, default=TABLE, metavar="PATH", help="default: beside this file")
    args = p.parse_args()
    if args.experiments < 1:
        sys.exit(f"two_stage.py: --experiments {args.experiments}: must be 1 or more")
    rows = []
    for case in cases():
        rows += outcomes(case, args.experiments)
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(args.table, index=False, float_format="%.4g")
    print(table.to_string(index=False))


def cases() -> Iterator[Case]:
    """The rule as it is meant; without the averages of a crowd; after scouting."""
    for noise, spread, ratio in product(NOISES, SPREADS, RATIOS):
        yield Case("known", noise, 8, spread, ratio)
    for noise, spread, ratio in product(NOISES[1:3], SPREADS, RATIOS):
        yield Case("known", noise, 1, spread, ratio)
    for spread, ratio in product(SPREADS, RATIOS):
        yield Case("scouting alone", "normal", 8, spread, ratio)
    for bend, spread, ratio in product(BENDS, SPREADS, RATIOS):
        yield Case("refined", "normal", 8, spread, ratio, bend)
    for spread, ratio in product(SPREADS[2:], RATIOS):
        yield Case("refined", "normal", 8, spread, ratio, BENDS[-1], MANY)


def outcomes(case: Case, experiments: int) -> list[dict[str, object]]:
    """A row without a cap, where all is known, and one with it, of the same experiments."""
    rng = np.random.default_rng([experiments, *repr(case).encode()])
    run = known if case.plan == "known" else scouted
    found = [answers for answers in (run(rng, case) for _ in range(experiments)) if answers]
    rows = []
    for name, answers in zip(
        ("none", str(CAP))[-len(found[0]) :], zip(*found, strict=True), strict=True
    ):
        low, value, high = np.array([(a.low, a.value, a.high) for a in answers]).T
        with np.errstate(divide="ignore"):  # of answers that say nothing
            logs, widths = np.log(value) - math.log(case.ratio), np.log(high) - np.log(low)
        row = case._asdict() | {
            "cap": name,
            "answered": len(answers) / experiments,
            "covers": float(((low <= case.ratio) & (case.ratio <= high)).mean()),
            "tells apart": float(((low > 1) | (high < 1)).mean()),
            "bias": float(logs.mean()),
            "median of errors": float(np.median(logs)),
            "median absolute error": float(np.median(np.abs(logs))),
            "median half-width": float(np.median(widths)) / 2,
            "mean blocks": float(np.mean([a.n for a in answers])),
        }
        rows.append(row)
    return rows


def known(rng: np.random.Generator, case: Case) -> tuple[Ratio, ...]:
    """A comparison with the right horizons and exponents, without a cap and with it."""
    shift, exponents = np.log([case.ratio, 1.0]), case.exponents

    def log_ratios(blocks: int) -> Array:
        ends = ends_of(rng, case, np.tile(shift[:, None], blocks))
        first, second = (crowds.log_times(ends[i], shift[i], 0.0, exponents[i]) for i in (0, 1))
        return first - second

    pilot = log_ratios(PILOT)
    needed = crowds.blocks_needed(pilot, PRECISION)
    values = np.concatenate([pilot, log_ratios(needed - PILOT)])
    return crowds.two_stage(values, PILOT), crowds.two_stage(values[:CAP], PILOT)


def scouted(rng: np.random.Generator, case: Case) -> tuple[Ratio, ...]:
    """A comparison that finds horizons and exponents, with a cap; empty where it finds none."""
    base = scout(rng, case, 1, None)
    quality = base.curve.value_at(0.0) if base else 0.0
    plans = [plan for plan in (scout(rng, case, 0, quality), base) if plan]
    if len(plans) < 2:
        return ()
    at = np.array([[plan.log_steps] for plan in plans])  # [optimizers, 1]
    pilot = ends_of(rng, case, np.tile(at, PILOT)).mean(axis=-1)
    if case.plan == "refined":
        plans = [refine(*of, quality) for of in zip(plans, pilot, strict=True)]
    exponents = np.array([[plan.exponent] for plan in plans])
    of_pilot = at + (pilot - quality) / exponents
    more = min(crowds.blocks_needed(np.subtract(*of_pilot), PRECISION), CAP) - PILOT
    again = at
    if case.plan == "refined":
        wanted = np.clip(of_pilot.mean(1, keepdims=True), at - FARTHEST, at + FARTHEST)
        again = GRID * np.round(wanted / GRID)
    at = np.hstack([np.tile(at, PILOT), np.tile(again, more)])
    ends = np.hstack([pilot, ends_of(rng, case, at[:, PILOT:]).mean(axis=-1)])
    times = at + (ends - quality) / exponents
    aiming = 0.0
    if case.plan == "refined":
        for i, (curve, x, exponent) in enumerate(plans):
            error = curve.exponent_error(x, pilot[i].std(ddof=1))
            aiming = math.hypot(aiming, crowds.aiming_error(times[i], at[i], exponent, error))
    return (crowds.two_stage(times[0] - times[1], PILOT, aiming),)


def scout(rng: np.random.Generator, case: Case, optimizer: int, quality: float | None) -> Plan | None:
    """From a ladder that reaches to either side of a quality, or of H where none is given."""
    ends = ends_of(rng, case, np.tile(LADDER, (2, 1)), case.scouts)[optimizer]
    means: Array = ends.mean(axis=-1)
    first, last = FIRST
    while True:
        curve = Curve(LADDER[first:last], means[first:last], case.scouts / case.students)
        wanted = curve.value_at(0.0) if quality is None else quality
        if plan := aim(curve, wanted):
            log_steps = 0.0 if quality is None else GRID * round(plan.log_steps / GRID)
            return plan._replace(log_steps=log_steps)
        upper = bool(means[last - 1] > wanted)
        longer = max(0, first - 2 * int(not upper)), min(len(LADDER), last + 2 * int(upper))
        if longer == (first, last):
            return None
        first, last = longer


def refine(plan: Plan, pilot: Array, quality: float) -> Plan:
    """With the pilot as one more rung: where the quality is, and the exponent there."""
    curve = plan.curve.with_rung(plan.log_steps, float(pilot.mean()), PILOT)
    found = curve.steps_at(quality)
    there = plan.log_steps if found is None else found
    exponent = curve.exponent_at(there)
    return Plan(curve, there, exponent if exponent > 0 else plan.exponent)


def aim(curve: Curve, quality: float) -> Plan | None:
    """Where a curve falls to a quality, if it does."""
    at = curve.steps_at(quality)
    if at is None or curve.exponent_at(at) <= 0:
        return None
    return Plan(curve, at, curve.exponent_at(at))


def ends_of(rng: np.random.Generator, case: Case, at: Array, students: int | None = None) -> Array:
    """Log metrics at the end of students that ran to log steps `at` from H.

    [optimizers, blocks] -> [optimizers, blocks, students]
    """
    blocks = at.shape[1]
    lessons = draw(rng, case.noise, (1, blocks, 1))
    own = draw(rng, case.noise, (2, blocks, students or case.students))
    exponents = np.array(case.exponents)[:, None]
    of_lessons = LESSONS * float(np.diff(1 / exponents, axis=0)[0, 0])
    scale = case.spread / math.sqrt((exponents**-2).sum() / case.students + of_lessons**2)
    beyond = at - np.log([[case.ratio], [1.0]])
    curves = -exponents * beyond * (1 + case.bend * beyond)
    return curves[:, :, None] + scale * (own + LESSONS * lessons)


def draw(rng: np.random.Generator, noise: str, shape: tuple[int, ...]) -> Array:
    """Mean 0, and but for those that diverge, standard deviation 1."""
    if noise == "heavy-tailed":
        return rng.standard_t(3, size=shape) / math.sqrt(3)
    if noise == "skewed":
        return rng.exponential(size=shape) - 1
    normal = rng.normal(size=shape)
    if noise == "diverging" and shape[0] == 2:
        normal[0] += DISTANCE * ((rng.random(shape[1:]) < 1 / DIVERGES) - 1 / DIVERGES)
    return normal


if __name__ == "__main__":
    main()
