"""A comparison at matched quality: in how many steps does each optimizer end where the baseline ends?

    Design -> make_plan (scouts) -> carry_out -> Outcome: log steps of each optimizer in each block

*Scouting* runs each optimizer at a ladder of horizons, and finds the horizon at which it ends at the
quality that the baseline has at the task's horizon. The *plan* fixes these horizons, and how many blocks
there may be; from then on everything follows from it. A *block* is one seed of lessons with some
students of each optimizer, at its own horizon. A pilot of blocks shows their spread,
and so how many are needed (Stein 1945; `analysis.statistics.crowds`). Scouting, the pilot's blocks and
all others have lessons and students of their own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.statistics import crowds
from analysis.statistics.ratio import Ratio, smallest_detectable
from optimizers.spec import Spec
from testbed import records
from testbed.errors import RequestError
from testbed.problem.problem import Problem
from testbed.training.optimizer import Optimizer, from_spec
from testbed.training.trial import Trial

Run = Callable[[Sequence[Trial], Path], None]  # runs unfinished trials, into a folder of records
Array = NDArray[np.float64]

PILOT = 6  # blocks
SCOUTS = 6  # students of each optimizer at a rung
FEWEST_STUDENTS, MOST_STUDENTS = 2, 64  # of each optimizer in a block
LARGEST = 16  # of these where nothing else is requested
FEWEST_STEPS = 10  # a shorter schedule is none
RUNGS = (-2, -1, 0, 1)  # of the ladder: powers of the root of 2, times the task's horizon
LOWEST, HIGHEST = -8, 4  # a sixteenth of the horizon, and four times
GRID = 16  # horizons of an octave that students run to: those nearby share lessons and programs
FARTHEST = 0.7  # in log steps: from where the pilot ran to where the blocks after it do
SEEDS = 1024  # of lessons, of one comparison: the first ones for blocks,
TIMING = SEEDS - 2 - HIGHEST + LOWEST  # then one for a block that is timed, and one for each rung
FIRST = 2**30  # of the lessons' seeds, which no `--seeds N` comes near


class NoBetterError(RequestError):
    """More steps do not make the baseline better, so that steps cannot be compared."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the optimizers that are compared.

    Attributes:
      opt: the word after `--opt`.
      spec: what it stands for.
      hyperparameters: those that replace its defaults.
    """

    opt: str
    spec: Spec
    hyperparameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As in records."""
        return self.spec.name

    @functools.cached_property  # its checksum takes longer than all else of a trial
    def optimizer(self) -> Optimizer:
        """What its students are trained with."""
        return from_spec(self.spec, self.hyperparameters)


@dataclasses.dataclass(frozen=True)
class Design:
    """All that determines the trials of a comparison, before anything has run.

    Attributes:
      problem: what is learned.
      arms: two optimizers or more.
      baseline: the name of one of them.
      steps: the horizon whose end, of the baseline, is the quality to be matched.
      students: of each optimizer in a block; None: as many as make the pilot about enough.
      seed: of all lessons and students; another one repeats the comparison on fresh ones.
    """

    problem: Problem
    arms: tuple[Arm, ...]
    baseline: str
    steps: int
    students: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what would give two students one seed.

        Raises:
          RequestError: too many students, too large a seed, or too few steps for a ladder.
        """
        largest = 2**31 // (MOST_STUDENTS * SEEDS * len(self.arms)) - 1
        if not 0 <= self.seed <= largest:
            raise RequestError(f"--seed {self.seed}: give {largest} at most")
        if self.students is not None and not 1 <= self.students <= MOST_STUDENTS:
            raise RequestError(f"--students {self.students}: give {MOST_STUDENTS} at most")
        if self.steps < FEWEST_STEPS * 2:
            raise RequestError(
                f"--steps {self.steps}: half of it is run, too; give {2 * FEWEST_STEPS} or more"
            )

    @property
    def metric(self) -> str:
        """The measurement that decides."""
        return f"test_{self.problem.task.decides}"

    def trials(self, arm: Arm, steps: int, block: int, students: int) -> list[Trial]:
        """Students of one optimizer in one block, at a horizon. No other block or arm has them."""
        place = (self.seed * SEEDS + block) * len(self.arms) + self.arms.index(arm)
        return [
            Trial(
                self.problem,
                arm.optimizer,
                steps,
                seed=place * MOST_STUDENTS + i,
                lesson_seed=FIRST + self.seed * SEEDS + block,
            )
            for i in range(students)
        ]

    def scouts(self, arm: Arm, rung: int) -> list[Trial]:
        """Students of one optimizer at a rung of the ladder; each rung has its own."""
        block = TIMING + 1 + rung - LOWEST
        return self.trials(arm, rung_steps(self.steps, rung), block, SCOUTS)


@dataclasses.dataclass(frozen=True)
class Match:
    """Where one optimizer ends at the quality that is matched.

    Attributes:
      steps: the horizon; None: it is not known.
      exponent: of the metric in steps there, above 0.
      bound: "at least" or "at most": `steps` is not known, but it is beyond `limit` on that side;
        empty where not even that is known, since the ladder goes up and down.
      limit: the last horizon that was tried on that side.
      ladder: horizon -> the metric at its end, the geometric mean of its students.
      spread: standard deviation of a student's log metric, pooled over the ladder.
      diverged: of the students at the task's horizon.
    """

    steps: int | None
    exponent: float
    bound: str
    limit: int
    ladder: Mapping[int, float]
    spread: float
    diverged: int

    @property
    def curve(self) -> crowds.Curve:
        """The ladder, in logarithms."""
        horizons = sorted(self.ladder)
        values = np.log([self.ladder[steps] for steps in horizons])
        return crowds.Curve(np.log(horizons), values)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a comparison does after scouting; nothing that it finds changes it.

    Attributes:
      quality: the metric that is matched.
      matches: of each optimizer, by name.
      students: of each optimizer in a block.
      precision: the ratio that is to be detected, in nine of ten comparisons.
      pilot: blocks that the spread is estimated from.
      most: blocks that there may be.
      block_seconds: what a block takes, as scouting found it.
    """

    quality: float
    matches: Mapping[str, Match]
    students: int
    precision: float
    pilot: int
    most: int
    block_seconds: float

    @property
    def matched(self) -> dict[str, int]:
        """Optimizers of which the horizon is known, and that."""
        return _horizons(self.matches)


def scout(design: Design, run: Run, out: Path) -> tuple[float, dict[str, Match]]:
    """The quality that is matched, and where each optimizer ends at it.

    Raises:
      NoBetterError: the baseline itself does not get better with more steps.
    """
    rungs = {arm.name: set(RUNGS) for arm in design.arms}
    while True:
        run(ladder(design, rungs), out)
        ends = {arm.name: _ends(design, arm, rungs[arm.name], out) for arm in design.arms}
        curves = {name: _curve(design, of) for name, of in ends.items()}
        base, start = curves[design.baseline], math.log(design.steps)
        if not base.exponent_at(start) > 0:
            raise NoBetterError(
                f"--baseline {design.baseline}: more steps do not make it better at {design.steps} "
                "steps; choose another, or another horizon"
            )
        quality = base.value_at(start)
        more = {
            name: _missing(design, curve, rungs[name], quality)
            for name, curve in curves.items()
            if name != design.baseline
        }
        if not any(more.values()):
            break
        for name, missing in more.items():
            rungs[name] |= missing
    matches = {arm.name: _match(design, arm, ends[arm.name], quality, out) for arm in design.arms}
    return math.exp(quality), matches


def rung_steps(steps: int, rung: float) -> int:
    """The horizon of a rung; whole and half octaves are those of the ladder."""
    return max(FEWEST_STEPS, round(steps * 2 ** (rung / 2)))


def on_grid(steps: int, log_steps: float) -> int:
    """The horizon of the grid around the task's horizon that is nearest to a number of steps."""
    octaves = round(GRID * (log_steps - math.log(steps)) / math.log(2)) / GRID
    return rung_steps(steps, 2 * octaves)


def ladder(design: Design, rungs: Mapping[str, set[int]]) -> list[Trial]:
    """The scouts at rungs of each optimizer; those of a rung are next to each other."""
    return [
        trial
        for rung in sorted(set().union(*rungs.values()))
        for arm in design.arms
        if rung in rungs[arm.name]
        for trial in design.scouts(arm, rung)
    ]


def _ends(design: Design, arm: Arm, rungs: set[int], out: Path) -> dict[int, Array]:
    """Log metrics of the scouts at each rung, [SCOUTS]."""
    return {rung: log_ends(design.scouts(arm, rung), out, design.metric) for rung in sorted(rungs)}


def _curve(design: Design, ends: Mapping[int, Array]) -> crowds.Curve:
    horizons = [rung_steps(design.steps, rung) for rung in ends]
    return crowds.Curve(np.log(horizons), np.array([of.mean() for of in ends.values()]))


def _missing(design: Design, curve: crowds.Curve, rungs: set[int], quality: float) -> set[int]:
    """Rungs that are needed to find the quality, and were not tried; none where it is found or lost."""
    if curve.steps_at(quality) is not None:
        return set()
    low, high = min(rungs), max(rungs)
    lowest = max(LOWEST, math.ceil(2 * math.log2(FEWEST_STEPS / design.steps)))
    below = {r for r in (low - 1, low - 2) if r >= lowest}
    above = {r for r in (high + 1, high + 2) if r <= HIGHEST}
    if curve.log_metric[-1] > quality:
        return above
    return below if curve.log_metric[0] <= quality else below | above


def _match(design: Design, arm: Arm, ends: Mapping[int, Array], quality: float, out: Path) -> Match:
    curve = _curve(design, ends)
    horizons = [rung_steps(design.steps, rung) for rung in ends]
    metrics = dict(zip(horizons, map(float, np.exp(curve.log_metric)), strict=True))
    spread = math.sqrt(float(np.mean([of.var(ddof=1) for of in ends.values()])))
    rest = metrics, spread, sum(_lost(design.scouts(arm, 0), out))
    start = math.log(design.steps)
    at = start if arm.name == design.baseline else curve.steps_at(quality)
    exponent = curve.exponent_at(start if at is None else at)
    if at is not None and exponent > 0:
        return Match(on_grid(design.steps, at), exponent, "", 0, *rest)
    if (curve.log_metric > quality).all():
        return Match(None, exponent, "at least", horizons[-1], *rest)
    if (curve.log_metric <= quality).all():
        return Match(None, exponent, "at most", horizons[0], *rest)
    return Match(None, exponent, "", 0, *rest)


def _horizons(matches: Mapping[str, Match]) -> dict[str, int]:
    return {name: match.steps for name, match in matches.items() if match.steps is not None}


def _block(design: Design, horizons: Mapping[str, int], block: int, students: int) -> list[Trial]:
    """The trials of a block; those of one horizon are next to each other, and share lessons."""
    return [
        trial
        for steps in sorted({*horizons.values()})
        for arm in design.arms
        if horizons.get(arm.name) == steps
        for trial in design.trials(arm, steps, block, students)
    ]


def make_plan(
    design: Design,
    run: Run,
    out: Path,
    *,
    precision: float,
    minutes: float = math.inf,
    most: int | None = None,
    at_once: int = 1,
) -> Plan:
    """Scouts, and fixes all that follows.

    Args:
      design: the comparison.
      run: runs trials.
      out: folder of records.
      precision: see Plan.
      minutes: for scouting, pilot and main blocks together.
      most: see Plan; None: what the minutes allow, by a block that is timed.
      at_once: how many jobs run at a time.
    """
    quality, matches = scout(design, run, out)
    students, seconds = students_for(design, matches, precision), 0.0
    if most is None:
        block = _block(design, _horizons(matches), TIMING, students)
        run(block, out)
        spent = seconds_of([*_scouts(design, matches), *block], out, whole=True) / at_once
        seconds = seconds_of(block, out) / at_once
        most = int(min(TIMING, (60 * minutes - spent) / seconds))
    return Plan(quality, matches, students, precision, PILOT, min(max(PILOT, most), TIMING), seconds)


def _scouts(design: Design, matches: Mapping[str, Match]) -> list[Trial]:
    """All that ran."""
    every = range(LOWEST, HIGHEST + 1)
    tried = {
        name: {rung for rung in every if rung_steps(design.steps, rung) in match.ladder}
        for name, match in matches.items()
    }
    return ladder(design, tried)


def students_for(design: Design, matches: Mapping[str, Match], precision: float) -> int:
    """Students of each optimizer in a block: as many as make the pilot about precise enough."""
    if design.students is not None:
        return design.students
    variances = {
        name: (match.spread / match.exponent) ** 2
        for name, match in matches.items()
        if match.steps is not None
    }
    base = variances.pop(design.baseline)
    half = crowds.half_width(precision, PILOT - 1)
    wanted = [crowds.students_needed(base + v, half, PILOT) for v in variances.values()]
    return min(max(FEWEST_STUDENTS, *map(math.ceil, wanted), 0), LARGEST)


def seconds_of(trials: Sequence[Trial], out: Path, *, whole: bool = False) -> float:
    """What trials took, from their batches' ledgers: a batch counts once. `whole`: with compilation."""
    batches = {}
    for trial in trials:
        path = trial.record_path(out)
        record = records.read(path)
        ledger = (record.end or {}).get("ledger", {})
        off = 0.0 if whole else ledger.get("compile_s", 0.0)
        batches[record.header.get("batch", {}).get("id", path.stem)] = ledger.get("wall_s", 0.0) - off
    return float(sum(batches.values()))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a comparison has found.

    Attributes:
      pilot: blocks, the first of all, that the spread is estimated from.
      times: name -> log steps that each block needs for the quality, [blocks]; of those matched.
      ran: name -> log steps that each block ran, [blocks].
      aiming: name -> standard error of the mean of these that no block shows: that of the exponent.
      diverged: name -> students that were lost, in all blocks.
    """

    pilot: int
    times: Mapping[str, Array]
    ran: Mapping[str, Array]
    aiming: Mapping[str, float]
    diverged: Mapping[str, int]

    @property
    def blocks(self) -> int:
        """How many were run."""
        return len(next(iter(self.times.values())))

    def ratio(self, first: str, second: str) -> Ratio:
        """Steps that the first needs, as a share of those that the second does."""
        aiming = math.hypot(self.aiming[first], self.aiming[second])
        return crowds.two_stage(self.times[first] - self.times[second], self.pilot, aiming)

    def smallest(self, first: str, second: str) -> float:
        """The smallest ratio that this comparison could have detected (80 % power, 5 %)."""
        aiming = math.hypot(self.aiming[first], self.aiming[second])
        error = math.hypot(self.spread(first, second) / math.sqrt(self.blocks), aiming)
        return smallest_detectable(error, self.pilot - 1)

    def spread(self, first: str, second: str) -> float:
        """Standard deviation of the pilot's log ratios."""
        return float(np.std((self.times[first] - self.times[second])[: self.pilot], ddof=1))

    def needed(self, first: str, second: str, precision: float) -> int:
        """Blocks in all that detect a ratio, by Stein's rule, which does not know of `aiming`."""
        pilot = (self.times[first] - self.times[second])[: self.pilot]
        return crowds.blocks_needed(pilot, precision)

    def aimed(self, first: str, second: str, precision: float) -> bool:
        """Whether exponents are known well enough to detect a ratio with any number of blocks."""
        aiming = math.hypot(self.aiming[first], self.aiming[second])
        return crowds.aims(aiming, precision, self.pilot - 1)


def carry_out(
    design: Design,
    plan: Plan,
    run: Run,
    out: Path,
    stage: Callable[[str, int], None] = lambda name, blocks: None,
) -> Outcome:
    """Runs the pilot, and then as many blocks as the precision needs and the plan allows.

    Args:
      design: the comparison.
      plan: of `make_plan`, for this design.
      run: runs trials.
      out: folder of records.
      stage: called before each stage, with its name and its number of blocks.
    """

    def run_blocks(blocks: range, horizons: Mapping[str, int]) -> None:
        run([t for block in blocks for t in _block(design, horizons, block, plan.students)], out)

    stage("pilot", plan.pilot)
    run_blocks(range(plan.pilot), plan.matched)
    first = outcome(design, plan, plan.pilot, out)
    others = [name for name in first.times if name != design.baseline]
    needed = [first.needed(name, design.baseline, plan.precision) for name in others]
    blocks = min(max([plan.pilot, *needed]), plan.most)
    if blocks == plan.pilot:
        return first
    stage("main", blocks - plan.pilot)
    run_blocks(range(plan.pilot, blocks), _aimed(design, plan, first))
    return outcome(design, plan, blocks, out)


def _aimed(design: Design, plan: Plan, first: Outcome) -> dict[str, int]:
    """The horizons of the blocks after the pilot: where the pilot ends at the quality, on the grid.

    Nearer to it, less depends on the exponent.
    """
    horizons = {}
    for name, times in first.times.items():
        ran = first.ran[name][0]
        wanted = np.clip(times[: plan.pilot].mean(), ran - FARTHEST, ran + FARTHEST)
        horizons[name] = on_grid(design.steps, float(wanted))
    return horizons


def outcome(design: Design, plan: Plan, blocks: int, out: Path) -> Outcome:
    """What the first blocks say, all of which have run."""
    pilot = _measured(design, plan, plan.matched, range(plan.pilot), out)
    found = _evaluated(design, plan, pilot)
    if blocks == plan.pilot:
        return found
    horizons = _aimed(design, plan, found)
    main = _measured(design, plan, horizons, range(plan.pilot, blocks), out)
    joined = {
        name: Ends(*(np.concatenate(pair) for pair in zip(pilot[name], main[name], strict=True)))
        for name in pilot
    }
    return _evaluated(design, plan, joined)


class Ends(NamedTuple):
    """The students of one optimizer in some blocks."""

    log_steps: Array  # [blocks], that they ran to
    log_metric: Array  # [blocks, students]
    lost: NDArray[np.bool_]  # [blocks, students]


def _measured(
    design: Design, plan: Plan, horizons: Mapping[str, int], blocks: range, out: Path
) -> dict[str, Ends]:
    ends = {}
    for arm in design.arms:
        if (steps := horizons.get(arm.name)) is None:
            continue
        of_blocks = [design.trials(arm, steps, block, plan.students) for block in blocks]
        metric = np.array([log_ends(trials, out, design.metric) for trials in of_blocks])
        lost = np.array([_lost(trials, out) for trials in of_blocks])
        ends[arm.name] = Ends(np.full(len(blocks), math.log(steps)), metric, lost)
    return ends


def _evaluated(design: Design, plan: Plan, ends: Mapping[str, Ends]) -> Outcome:
    times, aiming = {}, {}
    for name, of in ends.items():
        times[name], aiming[name] = _log_times(plan, plan.matches[name], of)
    lost = {name: int(of.lost.sum()) for name, of in ends.items()}
    ran = {name: of.log_steps for name, of in ends.items()}
    return Outcome(plan.pilot, times, ran, aiming, lost)


def _log_times(plan: Plan, match: Match, ends: Ends) -> tuple[Array, float]:
    """Log steps that each block needs, [blocks]; and the error in their mean that is the exponent's.

    The exponent is that of the ladder with the pilot as one more rung, so that its error is small.
    """
    at, quality = float(ends.log_steps[0]), math.log(plan.quality)
    pilot = ends.log_metric[: plan.pilot].mean(axis=1)
    ladder = match.curve._replace(blocks=SCOUTS / plan.students)
    curve = ladder.with_rung(at, float(pilot.mean()), plan.pilot)
    found = curve.steps_at(quality)
    there = at if found is None else found
    exponent = curve.exponent_at(there)
    exponent = exponent if exponent > 0 else match.exponent
    times = ends.log_steps + crowds.log_times(ends.log_metric, 0.0, quality, exponent)
    error = curve.exponent_error(there, float(pilot.std(ddof=1)))
    return times, crowds.aiming_error(times, ends.log_steps, exponent, error)


def _lost(trials: Sequence[Trial], out: Path) -> list[bool]:
    return [_is_lost(records.read(trial.record_path(out))) for trial in trials]


def log_ends(trials: Sequence[Trial], out: Path, metric: str) -> Array:
    """Logarithms of a metric at the ends of trials, [trials].

    A trial that is lost has the metric of its untrained student.
    """
    return np.array([*_log_ends(trials, out, metric)])


def _log_ends(trials: Sequence[Trial], out: Path, metric: str) -> Iterator[float]:
    for trial in trials:
        record = records.read(trial.record_path(out))
        row = record.measurements[0 if _is_lost(record) else -1]
        value = row.get(metric)
        if value is None or not value > 0:
            raise RequestError(
                f"{trial.record_path(out)}: its {metric} is {value}, which has no logarithm; choose a "
                "task whose metric stays above 0"
            )
        yield math.log(value)


def _is_lost(record: records.Record) -> bool:
    """Whether it has not finished, or what decides is not finite."""
    finished = record.end is not None and record.end["status"] == "finished"
    return not finished or record.measurements[-1][record.header["decides"]] is None
