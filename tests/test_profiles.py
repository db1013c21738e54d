"""Performance profiles and AlgoPerf's score, against published scores and against brute force."""

import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import frames
from analysis.statistics import profiles
from analysis.statistics.trials import trials as ends_of
from tests.test_analysis import FAST, NEVER, SLOW, write
from tests.test_tuning import ends, trial

# Seconds to target and scores of AlgoPerf v0.5, external tuning: from the logs published in
# github.com/mlcommons/submissions_algorithms (Apache-2.0); "about" in the file says how.
PUBLISHED = json.loads((Path(__file__).parent / "data" / "algoperf_v05_external.json").read_text())


@pytest.fixture(scope="module")
def published():
    return pd.DataFrame(PUBLISHED["seconds_to_target"]).T.astype(float)


def test_the_scores_of_algoperf_come_out(published):
    scores = profiles.score(published, PUBLISHED["tau_max"])
    assert scores.round(4).to_dict() == PUBLISHED["score"]
    assert len(scores) == 11


def test_the_score_is_the_trapezoid_of_the_profile_and_nears_its_integral(published):
    taus = np.linspace(1, 4, 100)
    by_hand = np.trapezoid(profiles.profile(published, taus), taus, axis=1) / 3
    np.testing.assert_allclose(profiles.score(published), by_hand, atol=1e-14)
    fine = profiles.score(published, points=100_001)
    np.testing.assert_allclose(profiles.exact_score(published), fine, atol=2e-5)
    assert not np.allclose(profiles.exact_score(published), by_hand, atol=1e-3)


def test_a_profile_counts_workloads_within_a_factor_of_the_best():
    times = pd.DataFrame(
        {"w": [10.0, 20.0, np.nan], "v": [9.0, 3.0, np.nan], "u": [np.nan] * 3}, list("abc")
    )
    assert profiles.ratios(times).to_numpy().tolist() == [[1, 3, np.inf], [2, 1, np.inf], [np.inf] * 3]
    profile = profiles.profile(times, [1, 1.9, 2, 3, 1e9])
    assert profile.loc["a"].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert profile.loc["b"].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert profile.loc["c"].tolist() == [0] * 5
    # (1 + 1/3 + 0) / 3 and (2/3 + 1 + 0) / 3
    assert profiles.exact_score(times).tolist() == pytest.approx([4 / 9, 5 / 9, 0])


def test_an_optimizer_that_needs_no_time_at_all_is_the_best():
    ratios = profiles.ratios(pd.DataFrame({"w": [0.0, 0.0, 5.0]}, list("abc")))
    assert ratios["w"].tolist() == [1, 1, np.inf]


def sample(optimizer, workload, times):
    return [
        {"optimizer": optimizer, "workload": workload, "seed": seed, "time": value}
        for seed, value in enumerate(times)
    ]


def test_medians_count_misses_as_later_than_all_others():
    nan = np.nan
    rows = sample("a", "odd", [1, nan, 3]) + sample("b", "odd", [1, nan, nan])
    rows += sample("a", "even", [1, 2, 3, nan]) + sample("b", "even", [1, 2, nan, nan])
    rows += sample("c", "even", [5])
    times = profiles.medians(pd.DataFrame(rows))
    assert times.loc["a"].to_dict() == {"odd": 3, "even": 2.5}
    assert times.loc["b"].isna().all(), "half of an even number are missed: so is the median"
    assert times.loc["c", "even"] == 5
    assert np.isnan(times.loc["c", "odd"])


def test_probabilities_of_ranks_are_those_of_all_resamples():
    """Two seeds make four resamples; pairs stay pairs, so that a is never slower than b."""
    rows = sample("a", "w", [1.0, 10.0]) + sample("b", "w", [2.0, 10.0])
    table = profiles.score_intervals(pd.DataFrame(rows), resamples=20_000)
    wins = [
        np.median([(1, 10)[i] for i in drawn]) < np.median([(2, 10)[i] for i in drawn])
        for drawn in product(range(2), repeat=2)
    ]
    expected = np.mean(wins) + (1 - np.mean(wins)) / 2  # ties share
    assert table.loc["a", "P(rank 1)"] == pytest.approx(expected, abs=0.01)
    assert table.loc["b", "P(rank 1)"] == pytest.approx(1 - expected, abs=0.01)
    assert table.loc["a", ["score", "low", "high"]].tolist() == [1, 1, 1]
    assert table.loc["b", "high"] == 1
    assert table.loc["b", "low"] == profiles.score(pd.DataFrame({"w": [1.0, 2.0]}))[1]


def field(optimizers=18, workloads=3, seeds=5):
    rng = np.random.default_rng(3)
    rows = []
    for o, w in product(range(optimizers), range(workloads)):
        times = 100 * (1 + o / 10) * np.exp(rng.normal(0, 0.2, seeds))
        rows += sample(f"o{o:02}", f"w{w}", np.where(times > 250, np.nan, times))
    return pd.DataFrame(rows)


def test_intervals_of_scores_are_quick_seeded_and_of_probabilities():
    trials = field()
    start = time.perf_counter()
    table = profiles.score_intervals(trials)
    assert time.perf_counter() - start < 3
    pd.testing.assert_frame_equal(table, profiles.score_intervals(trials.sample(frac=1, random_state=0)))
    ranks = table.filter(like="P(rank")
    assert ranks.shape == (18, 18)
    np.testing.assert_allclose(ranks.sum(axis=0), 1)
    np.testing.assert_allclose(ranks.sum(axis=1), 1)
    assert (table["low"] <= table["score"]).all()
    assert (table["score"] <= table["high"]).all()
    assert (table["n"] == 5).all()
    assert table.loc["o00", "P(rank 1)"] > 0.5
    pd.testing.assert_series_equal(
        table["exact"], profiles.exact_score(profiles.medians(trials)), check_names=False
    )


def test_optimizers_without_the_others_seeds_have_their_own():
    rows = sample("a", "w", [1.0, 2.0, 3.0]) + sample("b", "w", [5.0]) + sample("b", "v", [np.nan])
    table = profiles.score_intervals(pd.DataFrame(rows), resamples=200)
    assert table["n"].to_dict() == {"a": 0, "b": 1}
    assert table.loc["a", ["score", "low", "high"]].tolist() == [0.5, 0.5, 0.5], "no optimizer solved v"


def test_each_optimizer_enters_with_its_best_configuration(tmp_path):
    for seed in range(3):
        write(tmp_path, "adam", seed, SLOW, learning_rate=0.2)
        write(tmp_path, "adam", seed, NEVER, learning_rate=0.3)
        write(tmp_path, "sgd", seed, [4, None], status="diverged")
    write(tmp_path, "adam", 0, FAST, learning_rate=0.4)
    trials = profiles.trials_of(ends_of(frames.load(tmp_path)[0]))
    adam, sgd = trials[trials["optimizer"] == "adam"], trials[trials["optimizer"] == "sgd"]
    assert set(adam["label"]) == {"adam learning_rate=0.2"}, "one lucky seed is not three"
    assert adam["seed"].tolist() == [0, 1, 2]
    assert adam["time"].tolist() == [75] * 3
    assert sgd["time"].isna().all()
    assert set(trials["workload"]) == {"t, 100 steps, p"}
    assert profiles.score(profiles.medians(trials)).to_dict() == {"adam": 1, "sgd": 0}


@pytest.mark.filterwarnings("error")
def test_nothing_to_compare_makes_empty_tables():
    for few in (pd.DataFrame(), ends([trial(0, 0.1, 1.0, 5.0, "unfinished")])):
        trials = profiles.trials_of(few)
        assert trials.empty
        times = profiles.medians(trials)
        assert times.empty
        assert profiles.profile(times, [1, 2]).empty
        assert profiles.score(times).empty
        assert profiles.exact_score(times).empty
        table = profiles.score_intervals(trials)
        assert table.empty
        assert list(table.columns) == ["score", "low", "high", "exact", "n"]
    missed = profiles.trials_of(ends([trial(seed, 0.1, np.nan, np.nan) for seed in range(2)]))
    assert profiles.score_intervals(missed)["score"].tolist() == [0]
