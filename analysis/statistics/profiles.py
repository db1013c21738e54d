"""Performance profiles, and AlgoPerf's score: pure functions on tables of times.

References: Dolan and More 2002, "Benchmarking optimization software with performance profiles"; Dahl et
al. 2023, "Benchmarking neural network training algorithms" (arXiv 2306.07179), section 4.

A table of times has one row per optimizer and one column per workload: the steps or seconds to its
target, NaN where it was missed (or never tried).
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.statistics.trials import best_per_optimizer, merge_versions

Array = NDArray[np.float64]

RESAMPLES = 2000
TAU_MAX = 4.0  # AlgoPerf's
POINTS = 100


def ratios(times: pd.DataFrame) -> pd.DataFrame:
    """Each time over the best of its workload, [optimizer, workload]: 1 for the best, inf for a miss."""
    relative = _ratios(times.astype(float).fillna(np.inf).to_numpy())
    return pd.DataFrame(relative, times.index, times.columns)


def _ratios(times: Array) -> Array:
    """The same of [..., optimizer, workload], where a miss is inf."""
    best = times.min(axis=-2, keepdims=True, initial=np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):  # the best may have needed no time at all
        relative = np.where(times == best, 1.0, times / best)
    return np.where(np.isinf(times), np.inf, relative)


def profile(times: pd.DataFrame, taus: ArrayLike) -> pd.DataFrame:
    """The performance profile (Dolan and More 2002), [optimizer, tau].

    rho(tau): the share of all workloads in which an optimizer needs at most tau times the best's time.
    A workload that none solved counts against all.
    """
    grid = np.asarray(taus, float)
    solved = ratios(times).to_numpy()[:, :, None] <= grid
    shares = solved.sum(axis=1) / (times.shape[1] or np.nan)
    return pd.DataFrame(shares, index=times.index, columns=pd.Index(grid, name="tau"))


def score(times: pd.DataFrame, tau_max: float = TAU_MAX, points: int = POINTS) -> pd.Series:
    """AlgoPerf's score per optimizer, from 0 to 1, as its scorer computes it.

    The integral of `profile` over tau from 1 to tau_max, by the trapezoid rule on as many evenly spaced
    points, over tau_max - 1 (Dahl et al. 2023, equation 5).
    """
    worth = _worth(ratios(times).to_numpy(), tau_max, points)
    return pd.Series(worth.sum(axis=1) / (times.shape[1] or np.nan), times.index, name="score")


def exact_score(times: pd.DataFrame, tau_max: float = TAU_MAX) -> pd.Series:
    """The same with the exact integral: the mean over workloads of (tau_max - ratio) / (tau_max - 1)."""
    worth = _exact_worth(ratios(times).to_numpy(), tau_max)
    return pd.Series(worth.sum(axis=1) / (times.shape[1] or np.nan), times.index, name="exact")


def _worth(ratio: Array, tau_max: float, points: int) -> Array:
    """What a ratio adds to the score of one workload: the trapezoids below its step."""
    first = np.searchsorted(np.linspace(1, tau_max, points), ratio)  # from this point on it counts
    half = (first > 0) / 2  # the trapezoid before it is a triangle
    return np.clip(points - 1 - first + half, 0, None) / (points - 1)


def _exact_worth(ratio: Array, tau_max: float) -> Array:
    return np.clip((tau_max - ratio) / (tau_max - 1), 0, None)


def medians(trials: pd.DataFrame) -> pd.DataFrame:
    """Times of optimizers in workloads: medians over seeds, in which misses are later than all others.

    Of an even number, the mean of the two in the middle; missed where one of these is.

    Args:
      trials: columns optimizer, workload, seed (or study), time (NaN: missed); a row per trial.

    Returns:
      [optimizer, workload], NaN where missed, or where there are no trials.
    """
    counted = trials["time"].astype(float).fillna(np.inf)
    middle = counted.groupby([trials["optimizer"], trials["workload"]]).median()
    return middle.unstack("workload").replace(np.inf, np.nan).astype(float)


def score_intervals(
    trials: pd.DataFrame, resamples: int = RESAMPLES, tau_max: float = TAU_MAX
) -> pd.DataFrame:
    """Scores with 95 % intervals and the probability of each rank, by resampling seeds (or studies).

    A percentile bootstrap (Efron 1979) of what `score` says of `medians`: seeds are resampled within
    each workload, the same for all optimizers that ran the same seeds there, so that pairs stay pairs.
    Workloads are not resampled: the statement is about these. With one seed, an interval is a point.
    Resampling is seeded.

    Args:
      trials: as for `medians`.
      resamples: how many.
      tau_max: of the score.

    Returns:
      Index: optimizer. Columns: score, low, high, exact (`exact_score`), n (the fewest seeds it has in
      a workload), and P(rank 1), P(rank 2), ...: rows and columns sum to 1, as ties share their ranks.
    """
    times = medians(trials)
    table = pd.DataFrame({"score": score(times, tau_max), "exact": exact_score(times, tau_max)})
    if table.empty:
        return pd.DataFrame(columns=["score", "low", "high", "exact", "n"], index=times.index)
    drawn = _resampled(trials, times, resamples)
    scores = _worth(_ratios(drawn), tau_max, POINTS).mean(axis=2)
    low, high = np.quantile(scores, [0.025, 0.975], axis=0)
    seeds = trials.groupby(["optimizer", "workload"]).size().unstack("workload", fill_value=0)
    ranks = _ranks(scores)
    named = {f"P(rank {place + 1})": ranks[:, place] for place in range(len(table))}
    ordered = {"score": table["score"], "low": low, "high": high, "exact": table["exact"]}
    return pd.DataFrame(ordered | {"n": seeds.min(axis=1)} | named, index=times.index)


def _resampled(trials: pd.DataFrame, times: pd.DataFrame, resamples: int) -> Array:
    """Medians of resampled seeds, [resample, optimizer, workload]; inf where missed."""
    rng = np.random.default_rng(0)
    drawn = np.full((resamples, *times.shape), np.inf)
    for column, workload in enumerate(times.columns):
        here = trials[trials["workload"] == workload].sort_values("seed")
        draws: dict[tuple[object, ...], NDArray[np.int64]] = {}  # of the seeds that some share
        for optimizer, own in here.groupby("optimizer"):
            seeds = tuple(own["seed"])
            if seeds not in draws:
                draws[seeds] = rng.integers(0, len(seeds), (resamples, len(seeds)))
            values = own["time"].astype(float).fillna(np.inf).to_numpy()
            row = times.index.get_loc(optimizer)
            drawn[:, row, column] = np.median(values[draws[seeds]], axis=1)
    return drawn


def _ranks(scores: Array) -> Array:
    """[optimizer, rank]: how often each has each rank, from scores [resample, optimizer]."""
    rounded = np.round(scores, 12)  # sums in another order are ties too
    above = (rounded[:, None, :] > rounded[:, :, None]).sum(axis=2)[:, :, None]
    tied = (rounded[:, None, :] == rounded[:, :, None]).sum(axis=2)[:, :, None]
    places = np.arange(scores.shape[1])
    return (((places >= above) & (places < above + tied)) / tied).mean(axis=0)


def trials_of(ends: pd.DataFrame) -> pd.DataFrame:
    """What `medians` and `score_intervals` want, from `trials.trials`: time is steps to the target.

    A workload is a task, a horizon and a protocol. Each optimizer enters it with its best configuration
    (`trials.best_per_optimizer`). A trial without an end has no result yet, and is left out.

    Returns:
      Columns optimizer, workload, label, seed, time (NaN: missed); a row per trial.
    """
    columns = ["optimizer", "workload", "label", "seed", "time"]
    if ends.empty:
        return pd.DataFrame(columns=columns)
    best = merge_versions(best_per_optimizer(ends[ends["status"] != "unfinished"]))
    horizon = best["total_steps"].map("{:,} steps".format).astype(str)
    table = best.assign(
        workload=best["task"] + ", " + horizon + ", " + best["protocol"],
        time=best["steps_to_target"].astype(float),
    )
    return table[columns].sort_values(["workload", "optimizer", "seed"], ignore_index=True)
