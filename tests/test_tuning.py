"""The best of k, against all subsets and all tuples."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from analysis.statistics import trials, tuning

SAMPLES = {
    "distinct": [3.0, 0.7, 11.0, 2.5, 5.1, 0.9, 4.4],
    "tied": [2.0, 1.0, 2.0, 3.0, 1.0, 1.0],
    "one": [4.2],
}
CASES = [(name, k) for name, values in SAMPLES.items() for k in range(1, len(values) + 1)]
BEST = {"min": min, "max": max}


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("name", "k"), CASES)
def test_the_expected_best_is_its_mean_over_all_subsets(name, k, mode):
    bests = [BEST[mode](drawn) for drawn in combinations(SAMPLES[name], k)]
    assert tuning.expected_best(SAMPLES[name], k, mode) == pytest.approx(np.mean(bests), rel=1e-12)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("name", "k"), [case for case in CASES if case[1] <= 4])
def test_the_biased_expectation_is_the_mean_over_all_tuples(name, k, mode):
    bests = [BEST[mode](drawn) for drawn in product(SAMPLES[name], repeat=k)]
    assert tuning.expected_best_biased(SAMPLES[name], k, mode) == pytest.approx(
        np.mean(bests), rel=1e-12
    )


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("q", [0.05, 0.25, 0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize(("name", "k"), CASES)
def test_quantiles_of_the_best_are_those_of_all_subsets(name, k, q, mode):
    bests = sorted(BEST[mode](drawn) for drawn in combinations(SAMPLES[name], k))
    needed = Fraction(str(q)) * len(bests)
    expected = next(best for count, best in enumerate(bests, start=1) if count >= needed)
    assert tuning.best_quantile(SAMPLES[name], k, q, mode) == expected


@pytest.mark.parametrize("miss", [np.inf, np.nan])
def test_misses_are_the_worst_and_never_dropped(miss):
    values = [5.0, miss, 3.0, miss]
    assert tuning.expected_best(values, 2) == np.inf, "both may be misses"
    # The subsets of three: 5 or 3 with both misses, 3 in the two others.
    assert tuning.expected_best(values, 3) == pytest.approx((5 + 3 + 3 + 3) / 4, rel=1e-12)
    assert tuning.expected_best_biased(values, 9) == np.inf
    assert tuning.best_quantile(values, 2, 0.5) == 3.0
    assert tuning.best_quantile(values, 2, 0.8) == 5.0
    assert tuning.best_quantile(values, 2, 0.9) == np.inf, "one subset of six is of misses alone"
    negative = [-value for value in values]
    assert tuning.expected_best(negative, 2, "max") == -np.inf
    assert tuning.best_quantile(negative, 2, 0.6, "max") == -3.0
    assert tuning.best_quantile(negative, 2, 0.5, "max") == -5.0
    assert tuning.best_quantile(negative, 2, 0.1, "max") == -np.inf


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_probability_of_a_hit_is_the_share_of_subsets_with_one(k):
    values = [5.0, np.inf, 3.0, np.inf, np.nan]
    hits = [any(np.isfinite(drawn)) for drawn in combinations(values, k)]
    assert tuning.p_reached(values, k) == pytest.approx(np.mean(hits), rel=1e-12)


def test_thousands_of_values_lose_no_digits():
    """Of the ranks 1 to n, the least of k is at (n + 1) / (k + 1) on average."""
    n = 4000
    ranks = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    for k in (1, 2, 37, 2000, 3999, 4000):
        assert tuning.expected_best(ranks, k) == pytest.approx((n + 1) / (k + 1), rel=1e-11)
        assert tuning.expected_best(ranks, k, "max") == pytest.approx(k * (n + 1) / (k + 1), rel=1e-11)
    # However improbable (1 in 10^1202), it is possible.
    assert tuning.expected_best(np.where(ranks > 2000, np.inf, ranks), 2000) == np.inf


def test_the_biased_estimator_is_biased_and_the_other_is_not():
    """The least of 5 exponential variables has a mean of 1/5."""
    samples = np.random.default_rng(0).exponential(size=(4000, 8))
    unbiased = np.array([tuning.expected_best(sample, 5) for sample in samples])
    biased = np.array([tuning.expected_best_biased(sample, 5) for sample in samples])
    error = unbiased.std() / np.sqrt(len(samples))
    assert abs(unbiased.mean() - 0.2) < 4 * error
    assert biased.mean() - 0.2 > 4 * error


@pytest.mark.parametrize("k", [0, 4])
def test_more_than_there_are_cannot_be_drawn(k):
    with pytest.raises(ValueError, match=f"k = {k}"):
        tuning.expected_best([1.0, 2.0, 3.0], k)
    with pytest.raises(ValueError, match=f"k = {k}"):
        tuning.best_quantile([1.0, 2.0, 3.0], k, 0.5)
    with pytest.raises(ValueError, match="q = 1"):
        tuning.best_quantile([1.0, 2.0, 3.0], 2, 1.0)
    with pytest.raises(ValueError, match="0 values"):
        tuning.expected_best_biased([], 1)


def ends(rows):
    """As `trials.trials` gives them."""
    frame = pd.DataFrame(rows)
    return frame.assign(score=trials.score(frame)) if rows else frame


def trial(
    seed, learning_rate, final, steps, status="finished", optimizer="adam", mode="min", metric="kl"
):
    """One row of `trials.trials`, with the columns that these modules read."""
    return {
        "task": "t",
        "total_steps": 1000,
        "protocol": "p",
        "optimizer": optimizer,
        "optimizer_name": optimizer,
        "hyperparameters": f'{{"learning_rate": {learning_rate}}}',
        "label": f"{optimizer} {learning_rate}",
        "seed": seed,
        "status": status,
        "target_metric": metric,
        "target_mode": mode,
        metric: final,
        "steps_to_target": steps,
    }


def test_a_curve_is_of_configurations_each_the_median_of_its_seeds():
    rows = [trial(seed, 0.1, 0.5 + seed, 100 * seed + 100) for seed in range(3)]
    rows += [trial(0, 0.2, 0.7, np.nan), trial(0, 0.3, 0.1, 300, "diverged")]
    rows += [trial(0, 0.4, 9.0, 1, "unfinished"), trial(0, 0.1, 1.0, 1, optimizer="untuned")]
    curves = tuning.tuning_curves(ends(rows))
    assert list(curves.columns) == tuning.CURVES
    assert set(curves["optimizer"]) == {"adam"}
    final = curves[curves["measure"] == "final"].set_index("k")
    assert (final["n"] == 3).all(), "an unfinished trial has no result"
    assert final["mean"].tolist() == pytest.approx([np.inf, (2 * 0.7 + 1.5) / 3, 0.7])
    assert final["median"].tolist() == [1.5, 0.7, 0.7]
    assert final["p_reached"].isna().all()
    steps = curves[curves["measure"] == "steps_to_target"].set_index("k")
    assert steps["p_reached"].tolist() == pytest.approx([2 / 3, 1, 1])
    assert steps["mean"].tolist() == pytest.approx([np.inf, (200 + 200 + 300) / 3, 200])


def test_where_more_is_better_the_best_is_the_most():
    rows = [trial(0, rate, rate, np.nan, mode="max", metric="accuracy") for rate in (0.1, 0.2, 0.4)]
    rows.append(trial(0, 0.5, 0.9, np.nan, "diverged", mode="max", metric="accuracy"))
    final = tuning.tuning_curves(ends(rows)).query("measure == 'final'").set_index("k")
    assert final["mean"].tolist() == pytest.approx([-np.inf, (3 * 0.4 + 2 * 0.2 + 0.1) / 6, 0.35, 0.4])
    assert (final["q25"] <= final["q75"]).all()


def test_nothing_tuned_makes_no_curve():
    for rows in ([], [trial(0, 0.1, 1.0, 5)], [trial(0, r, 1.0, 5, "unfinished") for r in (0.1, 0.2)]):
        curves = tuning.tuning_curves(ends(rows))
        assert curves.empty
        assert list(curves.columns) == tuning.CURVES
    lost = ends([trial(0, r, np.nan, np.nan, "diverged") for r in (0.1, 0.2)])
    assert tuning.tuning_curves(lost)["median"].eq(np.inf).all()
