"""Searching hyperparameters: points of a search space, the best of them, and whether it lies on an edge.

Every optimizer gets the same number of points, the same for all of one number of hyperparameters, run
on a seed of their own.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from scipy.stats import qmc

from analysis.statistics.edges import edge_of
from benchmarks.trials import make_trial
from optimizers import registry
from optimizers.spec import Range, Spec
from testbed import records
from testbed.errors import RequestError
from testbed.problem.problem import Problem
from testbed.training.trial import Trial

TUNING_SEED = 2**31 - 1  # no `--seeds N` comes near it
FINALISTS, STUDENTS = 3, 4  # of each optimizer, the best points; and the fresh students that decide
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
    edges = {name: edge_of(value, [point[name] for point in tried]) for name, value in best.items()}
    return {name: edge for name, edge in edges.items() if edge}


def beyond(search: Range, edge: str) -> Range:
    """The range next to one, below or above it, and half as wide."""
    low, high, log = search
    if log:
        width = math.sqrt(high / low)
        return Range(low / width, low) if edge == "lowest" else Range(high, high * width)
    width = (high - low) / 2
    return Range(low - width, low, log) if edge == "lowest" else Range(high, high + width, log)


class Tuned(TypedDict):
    """What tuning found for one optimizer."""

    points: int
    best: dict[str, float]
    edges: dict[str, str]  # hyperparameter -> lowest or highest, where the best is that of all tried


def tune(
    problem: Problem,
    steps: int,
    specs: Sequence[Spec],
    given: Mapping[str, Mapping[str, Any]],
    pinned: Mapping[str, Collection[str]],
    count: int,
    extend: bool,
    run: Callable[[Sequence[Trial], Path], None],
    out: Path,
) -> dict[str, Tuned]:
    """The best of equally many points of each optimizer, on validation data.

    One student says too little about a point: the best three run again, with four fresh students each,
    whose mean decides.

    Args:
      problem: what is learned.
      steps: the horizon.
      specs: the optimizers.
      given: name -> hyperparameters that replace defaults, where they are not searched.
      pinned: name -> hyperparameters that are not searched.
      count: points of each.
      extend: whether as many are tried again: beyond the edges on which the best lie, and inside the
        space of the others.
      run: runs trials.
      out: folder of records.
    """
    spaces = [_searched(spec, pinned[spec.name]) for spec in specs]
    tried: dict[str, list[Mapping[str, Any]]] = {spec.name: [*points(spec, count)] for spec in spaces}

    def scores(chosen: Mapping[str, Sequence[int]], seeds: Sequence[int]) -> dict[str, list[float]]:
        """Of points of each optimizer, by their numbers: means over students of one lesson seed."""
        trials = {
            (spec.name, i): [
                make_trial(
                    problem,
                    spec,
                    steps,
                    seed,
                    {**given[spec.name], **tried[spec.name][i]},
                    None,
                    seeds[0],
                )
                for seed in seeds
            ]
            for spec in specs
            for i in chosen[spec.name]
        }
        run([trial for students in trials.values() for trial in students], out)
        means = {key: float(np.mean([final_score(t, out) for t in of])) for key, of in trials.items()}
        return {name: [means[name, i] for i in numbers] for name, numbers in chosen.items()}

    def all_scores() -> dict[str, list[float]]:
        return scores({name: range(len(of)) for name, of in tried.items()}, [TUNING_SEED])

    found = all_scores()
    if extend:
        for spec in spaces:
            tried[spec.name] += _more(spec, tried[spec.name], found[spec.name], count)
        found = all_scores()
    finalists = {name: np.argsort(of, kind="stable")[:FINALISTS].tolist() for name, of in found.items()}
    final = scores(finalists, [TUNING_SEED - 1 - i for i in range(STUDENTS)])
    best = {name: finalists[name][int(np.argmin(of))] for name, of in final.items()}
    return {
        name: Tuned(points=len(of), best=dict(of[best[name]]), edges=on_edge(of[best[name]], of))
        for name, of in tried.items()
    }


def _more(
    spec: Spec, tried: Sequence[Mapping[str, Any]], found: Sequence[float], count: int
) -> list[Mapping[str, Any]]:
    """As many points again: beyond the edges on which the best lies, or inside the space."""
    edges = on_edge(tried[int(np.argmin(found))], tried)
    ranges = {name: beyond(spec.space[name], edge) for name, edge in edges.items()}
    ranges = {name: search for name, search in ranges.items() if _is_allowed(spec, name, search)}
    wider = dataclasses.replace(spec, space={**spec.space, **ranges})
    return points(wider, count) if ranges else points(spec, 2 * count)[count:]


def _searched(spec: Spec, pinned: Collection[str]) -> Spec:
    """The optimizer, without what is pinned in its space."""
    spec = with_space(spec)
    space = {name: search for name, search in spec.space.items() if name not in pinned}
    if not space:
        raise RequestError(f"--hp: nothing is left to search of {spec.name}; pass --no-tune")
    return dataclasses.replace(spec, space=space)


def _is_allowed(spec: Spec, name: str, search: Range) -> bool:
    limits = spec.bounds.get(name)
    return limits is None or (limits.low <= search.low and search.high < limits.high)
