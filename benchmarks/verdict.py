"""The answer of a comparison: a sentence for each pair, and verdict.json.

`docs/verdict.schema.json` is the schema of the file, which other programs may rely on.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from analysis.statistics.ratio import Ratio
from benchmarks.comparison import SCOUTS, Design, Outcome, Plan
from testbed import plugins, provenance
from testbed.cli import command_line
from testbed.training.optimizer import from_spec

SCHEMA = 1
FAR = 0.15  # in log steps: from where students ran to where they end at the quality
SCATTERED = 0.1  # spread of blocks' log ratios; above, a ladder knows too little (docs/statistics.md)
Answer = Literal["faster", "slower", "no difference", "undecided"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The answer about two optimizers.

    Attributes:
      first: name; the ratio is of its steps.
      second: name.
      ratio: steps that the first needs, as a share of those that the second does.
      students: of each.
      smallest: the smallest ratio that could have been detected (80 % power, 5 %); NaN: unknown.
      answer: about the first.
      more_students: of each, that would detect `detects`; 0: none are needed, or more do not help.
      more_minutes: what they would take.
      detects: a ratio.
      limit: of a bound, the last horizon that was tried.
    """

    first: str
    second: str
    ratio: Ratio
    students: int
    smallest: float
    answer: Answer
    more_students: int = 0
    more_minutes: float = 0.0
    detects: float = math.nan
    limit: int = 0

    def sentence(self, metric: str, quality: float) -> str:
        """The answer in words."""
        where = f"at matched quality ({metric} {quality:.3g})"
        count = f"{self.students} students each"
        interval = f"{self.ratio.value:.3f} [{self.ratio.low:.3f}, {self.ratio.high:.3f}]"
        could = f"{count}, which could have detected {self.smallest:.3f}"
        if self.ratio.bound:
            above = "the longest tried, it still ends above"
            side = above if self.answer == "slower" else "the shortest tried, it already ends below"
            return (
                f"{self.first} needs {self.ratio.bound} {self.ratio.value:.2f} of {self.second}'s steps "
                f"{where}: at {self.limit:,} steps, {side} this quality: {self.answer}"
            )
        if self.answer in ("faster", "slower"):
            return (
                f"{self.first} needs {interval} of {self.second}'s steps {where}; {could}: {self.answer}"
            )
        if self.answer == "no difference":
            largest = max(self.ratio.high - 1, 1 - self.ratio.low)
            return (
                f"{self.first} and {self.second}: no difference larger than {largest:.1%} "
                f"({interval} of the steps {where}; {could})"
            )
        more = (
            f"{self.more_students} students more of each, about {self.more_minutes:.1f} minutes, would "
            f"detect {self.detects:.3f}"
            if self.more_students
            else "more students would not decide it: the exponents are not known well enough"
        )
        about = f"{self.first} and {self.second}: undecided"
        return f"{about}: {interval} of the steps {where}; {could}; {more}"


def pairs(design: Design, plan: Plan, outcome: Outcome) -> Iterator[Pair]:
    """Every pair of optimizers that has an answer.

    The baseline is second where it is one of them; of others, one whose ratio is only bounded is first.
    """
    names = [arm.name for arm in design.arms if arm.name != design.baseline]
    for first, second in itertools.combinations([*names, design.baseline], 2):
        if first in outcome.times and second in outcome.times:
            yield _measured(plan, outcome, first, second)
        elif second in outcome.times and plan.matches[first].bound:
            yield _bounded(plan, first, second)
        elif first in outcome.times and plan.matches[second].bound:
            yield _bounded(plan, second, first)


def _measured(plan: Plan, outcome: Outcome, first: str, second: str) -> Pair:
    ratio, precision = outcome.ratio(first, second), plan.precision
    answer: Answer = "undecided"
    if not ratio.low <= 1 <= ratio.high:
        answer = "faster" if ratio.value < 1 else "slower"
    elif 1 / precision <= ratio.low and ratio.high <= precision:
        answer = "no difference"
    students = outcome.blocks * plan.students
    pair = Pair(first, second, ratio, students, outcome.smallest(first, second), answer)
    if answer != "undecided" or not outcome.aimed(first, second, precision):
        return pair
    detects = precision
    if outcome.needed(first, second, precision) <= outcome.blocks:  # and yet it is too near to 1
        detects = 1 + max(0.001, abs(math.log(ratio.value)))
    blocks = max(1, outcome.needed(first, second, detects) - outcome.blocks)
    return dataclasses.replace(
        pair,
        more_students=blocks * plan.students,
        more_minutes=blocks * plan.block_seconds / 60,
        detects=detects,
    )


def _bounded(plan: Plan, first: str, second: str) -> Pair:
    """Where the first has no horizon on its ladder."""
    match = plan.matches[first]
    value, inf = match.limit / (plan.matched[second]), math.inf
    low, high = (value, inf) if match.bound == "at least" else (0.0, value)
    answer: Answer = "slower" if match.bound == "at least" else "faster"
    ratio = Ratio(value, low, high, math.nan, 1, match.bound)
    return Pair(first, second, ratio, SCOUTS, math.nan, answer, limit=match.limit)


def diverged(plan: Plan, outcome: Outcome, name: str) -> int:
    """Students of an optimizer that were lost: in blocks, or else among the scouts."""
    return outcome.diverged.get(name, 0) or plan.matches[name].diverged


def warnings(
    design: Design, plan: Plan, outcome: Outcome, tuned: Mapping[str, Mapping[str, Any]], asked: int
) -> Iterator[str]:
    """What a reader should know before believing the answer.

    Args:
      design: of the comparison.
      plan: of the comparison.
      outcome: of the comparison.
      tuned: name -> what tuning found; empty where nothing was tuned.
      asked: how often this comparison was asked for, with other precisions or minutes.
    """
    if asked > 1:
        yield (
            f"This comparison was requested {asked} times, with other precisions or minutes: choosing "
            "among answers makes these intervals too narrow; --plan fixes the request beforehand."
        )
    for name, found in tuned.items():
        for hyperparameter, edge in found.get("edges", {}).items():
            yield (
                f"{name}: its best {hyperparameter} is the {edge} that was tried "
                f"({found['best'][hyperparameter]:.3g}); --extend searches beyond."
            )
    for name, match in plan.matches.items():
        if lost := diverged(plan, outcome, name):
            yield f"{name}: {lost} students diverged; the interval is not made for such outliers."
        if match.steps is None:
            known = "its ratio is a bound" if match.bound else "it is above and below: no answer"
            yield f"{name}: no horizon of its ladder ends at this quality; {known}."
    for name, times in outcome.times.items():
        if abs(off := float(np.mean(times - outcome.ran[name]))) > FAR:
            yield (
                f"{name}: students ran {math.exp(-off):.2f} times as long as they needed for this "
                "quality; the ratio rests on the local exponent."
            )
        if (spread := outcome.spread(name, design.baseline)) > SCATTERED:
            yield (
                f"{name}: blocks scatter by {spread:.0%}: above {SCATTERED:.0%}, intervals hold the "
                "truth less often than in 95 of 100; take more --students or a sharper task."
            )


def document(
    design: Design,
    plan: Plan,
    outcome: Outcome,
    tuned: Mapping[str, Mapping[str, Any]],
    asked: int,
    minutes: float,
) -> dict[str, Any]:
    """The content of verdict.json."""
    answers = [*pairs(design, plan, outcome)]
    return {
        "schema": SCHEMA,
        "task": design.problem.task.name,
        "protocol": design.problem.protocol,
        "metric": design.metric,
        "quality": plan.quality,
        "baseline": design.baseline,
        "steps": design.steps,
        "seed": design.seed,
        "students_per_block": plan.students,
        "blocks": {"pilot": plan.pilot, "run": outcome.blocks, "allowed": plan.most},
        "budget": {"precision": plan.precision, "minutes": minutes, "asked": asked},
        "optimizers": [_optimizer(design, plan, outcome, tuned, i) for i in range(len(design.arms))],
        "pairs": [_pair(pair, design, plan) for pair in answers],
        "warnings": [*warnings(design, plan, outcome, tuned, asked)],
        "versions": provenance.versions(),
        "device": provenance.device(),
        "git": provenance.git(),
        "command": command_line(),
    }


def _optimizer(
    design: Design, plan: Plan, outcome: Outcome, tuned: Mapping[str, Mapping[str, Any]], i: int
) -> dict[str, Any]:
    arm = design.arms[i]
    match, times = plan.matches[arm.name], outcome.times.get(arm.name)
    optimizer = from_spec(arm.spec, arm.hyperparameters)
    return {
        "name": arm.name,
        "opt": arm.opt,
        "sha256": optimizer.sha256,
        "hyperparameters": plugins.as_json(optimizer.hyperparameters),
        "tuned": dict(tuned[arm.name]) if arm.name in tuned else None,
        "horizon": match.steps,
        "main_horizon": None if times is None else round(math.exp(outcome.ran[arm.name][-1])),
        "exponent": match.exponent,
        "steps_to_quality": None if times is None else _finite(float(np.exp(times.mean()))),
        "ladder": [{"steps": steps, "metric": match.ladder[steps]} for steps in sorted(match.ladder)],
        "diverged": diverged(plan, outcome, arm.name),
    }


def _pair(pair: Pair, design: Design, plan: Plan) -> dict[str, Any]:
    ratio = pair.ratio
    return {
        "first": pair.first,
        "second": pair.second,
        "ratio": _finite(ratio.value),
        "low": ratio.low,
        "high": _finite(ratio.high),
        "bound": ratio.bound,
        "p_slower": _finite(ratio.p_above_1),
        "students": pair.students,
        "smallest": _finite(pair.smallest),
        "answer": pair.answer,
        "more_students": pair.more_students,
        "more_minutes": pair.more_minutes,
        "sentence": pair.sentence(design.metric, plan.quality),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
