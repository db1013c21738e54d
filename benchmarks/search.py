"""Searching hyperparameters: points of a search space, the best of them, and whether it lies on an edge.

Every optimizer gets the same number of points, the same for all of one number of hyperparameters, run
on a seed of their own.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import qmc

from optimizers import registry
from optimizers.spec import Range, Spec
from testbed import records
from testbed.errors import RequestError
from testbed.training.trial import Trial

TUNING_SEED = 2**31 - 1  # no `--seeds N` comes near it
DECADE = 10.0  # a learning rate without a range is searched from a tenth to ten times its default


def points(spec: Spec, count: int) -> list[Mapping[str, Any]]:
    """Points of the search space, rounded to three digits: the first `count` of the sequence.

    Raises:
      RequestError: the optimizer has no search space.
    """
    if not spec.space:
        raise RequestError(f"--opt {spec.name}: it has no search space; give it one in SPEC.space")
    cube = qmc.Halton(len(spec.space), scramble=True, rng=0).random(count)
    return [
        {name: _within(search, u) for (name, search), u in zip(spec.space.items(), row, strict=True)}
        for row in cube.tolist()
    ]


def _within(search: Range, u: float) -> float:
    low, high = (
        (math.log(search.low), math.log(search.high)) if search.log else (search.low, search.high)
    )
    value = low + u * (high - low)
    return float(f"{math.exp(value) if search.log else value:.3g}")


def ranked(trials: Sequence[Trial], out: Path) -> list[Trial]:
    """Trials by how they ended on validation data, the best first."""
    return sorted(trials, key=lambda trial: final_score(trial, out))


def final_score(trial: Trial, out: Path) -> float:
    """The validation metric of the target at the end of a trial, better when lower; inf: diverged."""
    record = records.read(trial.record_path(out))
    value = record.measurements[-1][trial.task.target.metric]
    if record.end is None or record.end["status"] != "finished" or value is None:
        return math.inf
    return value if trial.task.target.mode == "min" else -value


def with_space(spec: Spec) -> Spec:
    """The optimizer with something to search: its own space, or a range around its learning rate.

    Raises:
      RequestError: it has neither.
    """
    rate = registry.defaults(spec).get("learning_rate")
    if spec.space:
        return spec
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise RequestError(
            f"--opt {spec.name}: there is nothing to search; give it SPEC.space, or a default for "
            "learning_rate, or pass --no-tune"
        )
    return dataclasses.replace(spec, space={"learning_rate": Range(rate / DECADE, rate * DECADE)})


def on_edge(best: Mapping[str, float], tried: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Hyperparameters of which no lower, or no higher, value was tried than the best: name -> which."""
    edges = {}
    for name, value in best.items():
        values = [point[name] for point in tried]
        if value in (min(values), max(values)) and len({*values}) > 1:
            edges[name] = "lowest" if value == min(values) else "highest"
    return edges


def beyond(search: Range, edge: str) -> Range:
    """The range next to one, below or above it, and half as wide."""
    low, high, log = search
    if log:
        width = math.sqrt(high / low)
        return Range(low / width, low) if edge == "lowest" else Range(high, high * width)
    width = (high - low) / 2
    return Range(low - width, low, log) if edge == "lowest" else Range(high, high + width, log)
