"""Crowds in comparisons: what is a pair, what is independent, and what a comparison could have seen."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import frames
from analysis.output import checks, headlines, tables
from analysis.statistics import crossings, edges, matched_quality, ratio, speedups, trials
from analysis.statistics.designs import design
from analysis.statistics.ratio import Times
from tests.test_analysis import FAST, SLOW, write

NAN = np.nan


def edit(path, **fields):
    """Changes fields of a record's header."""
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | fields), *rest]) + "\n")


def ends_of(folder):
    return trials.trials(frames.load(folder)[0])


def crowd(rng, crowds, students, factor=1.0, horizon=np.inf):
    """Times of crowds that each have luck of their own: with lessons, and as [crowd, student]."""
    luck = np.random.default_rng(crowds).normal(0, 0.2, (crowds, 1))
    times = 1000 / factor * np.exp(luck + rng.normal(0, 0.2, (crowds, students)))
    reached = np.where(times <= horizon, times, NAN).ravel()
    lessons = np.repeat([f"{10 - i}" for i in range(crowds)], students)
    return Times(reached, np.full(times.size, min(horizon, 1e30)), 0.0, lessons), times


@pytest.mark.parametrize("pairing", [ratio.paired, ratio.unpaired])
@pytest.mark.parametrize("horizon", [np.inf, 1100])
def test_a_crowd_of_one_is_a_trial(pairing, horizon):
    rng = np.random.default_rng(0)
    (base, _), (other, _) = crowd(rng, 7, 1, horizon=horizon), crowd(rng, 7, 1, 1.3, horizon)
    alone = [times._replace(lessons=None) for times in (base, other)]
    found, expected = pairing(base, other), pairing(*alone)
    assert found[:5] == pytest.approx(expected[:5], rel=1e-9)
    assert found.smallest == pytest.approx(expected.smallest, rel=1e-9)


def test_without_misses_crowds_are_compared_by_the_means_of_logarithms():
    rng = np.random.default_rng(1)
    (base, a), (other, b) = crowd(rng, 6, 4), crowd(rng, 6, 5, 1.3)
    means = np.log(a).mean(axis=1), np.log(b).mean(axis=1)
    for found, test in (
        (ratio.paired(base, other), stats.ttest_rel(*means)),
        (ratio.unpaired(base, other), stats.ttest_ind(*means, equal_var=False)),
    ):
        expected = np.exp(test.confidence_interval(0.95))
        assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-9)
        assert found.n == 6


def test_with_misses_a_crowd_is_cut_where_both_sides_were_watched():
    rng = np.random.default_rng(2)
    (base, _), (other, _) = crowd(rng, 8, 4, horizon=1100), crowd(rng, 8, 4, 1.2, 1000)
    assert np.isnan(base.reached).any()

    def accepted(r):
        cut = min(r * 1000, 1100)
        mine, theirs = (
            np.log(np.fmin(scale * np.nan_to_num(side.reached, nan=1e9), cut)).reshape(8, 4).mean(axis=1)
            for scale, side in ((r, other), (1, base))
        )
        return stats.ttest_rel(mine, theirs).pvalue >= 0.05

    found = ratio.paired(base, other)
    assert 0 < found.low < found.value < found.high < np.inf
    assert accepted(found.low * 1.0001)
    assert not accepted(found.low * 0.9999)
    assert accepted(found.high * 0.9999)
    assert not accepted(found.high * 1.0001)


def test_at_the_others_horizon_the_test_of_independent_crowds_is_welchs():
    """Metric = c / steps: the other at 400 steps ends where the baseline does at 800."""
    rng = np.random.default_rng(3)
    base, *others = (
        np.log(c) + 0.1 * rng.normal(size=9) for c in (1 / 800, 2 / 800, 1 / 800, 0.5 / 800)
    )
    steps = np.log([200.0, 400.0, 800.0])
    found = ratio.between_horizons(base, others, np.log(800), steps)

    def rejected(r):
        share = [np.interp(np.log(800 / r), steps, row) for row in np.eye(3)]
        parts = [(w, y.var(ddof=1) / len(y)) for w, y in zip([*share, -1], [*others, base], strict=True)]
        error = np.sqrt(sum(w * w * v for w, v in parts))
        df = error**4 / sum((w * w * v) ** 2 / 8 for w, v in parts)
        mean = sum(w * y.mean() for w, y in zip([*share, -1], [*others, base], strict=True))
        return 2 * stats.t.sf(abs(mean) / error, df) < 0.05

    assert 1.5 < found.low < found.value < found.high < 2.5
    for edge, inside in ((found.low, 1.0001), (found.high, 0.9999)):
        assert not rejected(edge * inside)
        assert rejected(edge / inside)
    welch = stats.ttest_ind(others[1], base, equal_var=False).pvalue
    assert rejected(2.0) == (welch < 0.05)


def test_the_smallest_detectable_ratio_is_detected_in_four_of_five():
    rng, n, sd = np.random.default_rng(4), 8, 0.1
    smallest = ratio.smallest_detectable(sd / np.sqrt(n), n - 1)
    logs = rng.normal(np.log(smallest), sd, (20_000, n))
    detected = stats.ttest_1samp(logs, 0, axis=1).pvalue < 0.05
    assert 0.78 < detected.mean() < 0.82
    found = ratio.geometric_mean(np.exp(logs[0]))
    error = logs[0].std(ddof=1) / np.sqrt(n)
    assert found.smallest == pytest.approx(ratio.smallest_detectable(error, n - 1))
    base, other = Times(np.full(n, 1e3), np.full(n, 1e9)), Times(1e3 / np.exp(logs[0]), np.full(n, 1e9))
    assert ratio.paired(base, other).smallest == pytest.approx(found.smallest, rel=1e-6)
    assert ratio.paired(base, other).inverse().smallest == ratio.paired(base, other).smallest
    never = Times(np.full(n, NAN), np.full(n, 1e3))
    assert np.isnan(ratio.paired(never, other).smallest), "a bound has none"


@pytest.mark.parametrize(
    ("one", "other", "unit", "paired"),
    [
        ("01234", "01234", "seeds", True),
        ("01234", "23456", "seeds", True),
        ("01", "01", "seeds", True),
        ("01234", "34567", "seeds", False),
        ("0000", "0000", "students", False),
        ("0000", "1111", "students", False),
        ("0011", "0011", "students", False),
        ("001122", "001122", "lesson seeds", True),
        ("001122", "334455", "lesson seeds", False),
        ("01234", "0000", "students", False),
    ],
)
def test_what_is_a_pair(one, other, unit, paired):
    found = design(pd.Series([*one]), pd.Series([*other]))
    assert (found.unit, found.paired) == (unit, paired)


def test_students_of_one_lesson_seed_are_independent_and_of_three_their_means_are_pairs(tmp_path):
    rng = np.random.default_rng(5)
    for lessons in (7, 8, 9):
        for name, level in (("adam", 1.0), ("fast", 0.8)):
            for seed in range(6):
                curve = [4, *(level * np.exp(0.2 * rng.normal(size=20)) * np.linspace(3, 0.1, 20))]
                write(tmp_path / str(lessons), name, seed, curve, lessons=lessons)
                write(tmp_path / "all", name, seed, curve, lessons=lessons)
    one = speedups.speedups(ends_of(tmp_path / "7"), "adam").set_index("axis").loc["steps"]
    assert one[["unit", "paired", "n", "students"]].tolist() == ["students", False, 6, 6]
    assert np.isnan(one["wins"])
    every = speedups.speedups(ends_of(tmp_path / "all"), "adam").set_index("axis").loc["steps"]
    assert every[["unit", "paired", "n", "students"]].tolist() == ["lesson seeds", True, 3, 18]
    ends = ends_of(tmp_path / "all")
    assert set(ends["label"]) == {"adam", "fast"}, "lesson seeds are no configurations"
    means = np.log(ends["steps_to_target"]).groupby([ends["label"], ends["lessons"]]).mean()
    assert every["speedup"] == pytest.approx(np.exp((means["adam"] - means["fast"]).mean()))


def test_students_that_share_lessons_are_apart_from_those_that_were_tuned_on_their_own(tmp_path):
    write(tmp_path, "adam", 0, FAST)
    for lessons in (5, 6):
        write(tmp_path, "adam", 0, SLOW, lessons=lessons)
    assert set(frames.load(tmp_path)[0]["label"]) == {"adam lessons=own", "adam lessons=shared"}


def test_a_student_whose_seed_is_that_of_its_lessons_is_one_of_the_crowd(tmp_path):
    for seed in range(3):
        for lessons in range(3):
            write(tmp_path, "adam", seed, SLOW, lessons=None if lessons == seed else lessons)
    runs = frames.read(tmp_path).runs
    assert set(runs["label"]) == {"adam"}
    assert runs.groupby("lessons").size().to_dict() == {"0": 3, "1": 3, "2": 3}


def horizons(folder, seed, lessons=None, noise=0.05):
    """KL = c / steps, of which adam's c is twice the other's."""
    rng = np.random.default_rng([seed, lessons or 0])
    for steps in (100, 200, 400, 800):
        for name, c in (("adam", 100), ("half", 50)):
            kl = c / steps * np.exp(noise * rng.normal())
            write(folder, name, seed, [9, 5, kl], steps, lessons=lessons)


def test_matched_quality_of_crowds(tmp_path):
    """With one lesson seed students are independent; with three, means over their students are pairs."""
    for seed in range(8):
        for lessons in (1, 2, 3):
            horizons(tmp_path / "three", seed, lessons)
        horizons(tmp_path / "one", seed, 1)
    found = {
        name: matched_quality.matched_quality(ends_of(tmp_path / name), "adam").set_index("horizon")
        for name in ("one", "three")
    }
    one, three = (of.loc[800] for of in found.values())
    assert one[["unit", "paired", "n"]].tolist() == ["students", False, 8]
    assert three[["unit", "paired", "n"]].tolist() == ["lesson seeds", True, 3]
    for row in (one, three):
        assert row["low"] < 2 < row["high"]
        assert row["speedup"] == pytest.approx(2, rel=0.1)
    assert one["smallest"] == pytest.approx(np.exp(0.05 * np.sqrt(2 / 8) * 3.01), rel=0.02)


def test_matched_quality_of_horizons_with_other_lessons_is_of_independent_crowds(tmp_path):
    """A ladder of one crowd each, and many crowds at one horizon: what `compare.py` runs."""
    for rung, steps in enumerate((200, 400, 800)):
        for seed in range(8):
            for name, c in (("adam", 100), ("half", 50)):
                for lessons in (
                    (rung, *range(10, 16)) if steps == {"adam": 800, "half": 400}[name] else (rung,)
                ):
                    kl = c / steps * np.exp(0.05 * np.random.default_rng([seed, lessons, c]).normal())
                    write(tmp_path, name, seed, [9, 5, kl], steps, lessons=lessons)
    table = matched_quality.matched_quality(ends_of(tmp_path), "adam")
    row = table.set_index("horizon").loc[800]
    assert row["low"] < 2 < row["high"]
    assert row[["unit", "paired", "n", "students_over"]].tolist() == ["lesson seeds", False, 7, 56]
    best = trials.best_per_optimizer(ends_of(tmp_path))
    first = next(headlines.headlines(best, speedups.speedups(ends_of(tmp_path), "adam"), table))
    assert first.startswith("half needs 0.5")
    assert "of adam's steps at matched quality (adam's test KL at the end of 800 steps), n = 7" in first
    assert "; smallest detectable ratio 1.0" in first


def test_unshared_seeds_have_a_matched_quality_too(tmp_path):
    for seed in range(5):
        for steps in (100, 200, 400):
            write(tmp_path, "adam", seed, [9, 100 / steps * (1 + seed / 50)], steps)
            write(tmp_path, "half", 10 + seed, [9, 50 / steps * (1 + seed / 50)], steps)
    row = matched_quality.matched_quality(ends_of(tmp_path), "adam").set_index("horizon").loc[400]
    assert not row["paired"]
    assert row["speedup"] == pytest.approx(2)


def test_the_deciding_metric_is_that_of_the_header(tmp_path):
    """Only the sharper metric tells them apart; older records, and faulty headers, have test KL."""
    for seed in range(3):
        for name, sharp in (("adam", 1.0), ("fast", 0.5)):
            path = write(tmp_path, name, seed, [4, 2, 1])
            text = path.read_text().replace('"test_kl": 1,', f'"test_kl": 1, "test_mixed_kl": {sharp},')
            path.write_text(text)
            edit(path, decides="test_mixed_kl")
    ends = ends_of(tmp_path)
    assert ends.groupby("label")["final"].first().to_dict() == {"adam": 1.0, "fast": 0.5}
    for odd in ("beauty", 3, None, "validation_accuracy"):
        edit(path, decides=odd)
        folder = frames.read(tmp_path)
        assert "deciding metric" in folder.errors[0].reason
        assert set(folder.runs["decides"]) == {"test_kl", "test_mixed_kl"}
        warned = "\n".join(checks.warnings(folder, trials.trials(folder.frame)))
        assert "Mixed deciding metrics: the runs of t (p) name test_kl and test_mixed_kl" in warned
    assert matched_quality.matched_quality(ends_of(tmp_path), "adam").empty


def test_curves_that_cross_are_named(tmp_path):
    """Within a schedule by more than the noise; and between horizons."""
    for seed in range(4):
        wobble = 1 + seed / 100
        write(tmp_path, "adam", seed, [4, 3, 2 * wobble, 1, 0.2 * wobble])
        write(tmp_path, "hasty", seed, [4, 2, 1 * wobble, 0.9, 0.8 * wobble])
        write(tmp_path, "even", seed, [4, 3, 2 * wobble, 1, 0.201 * wobble])
        write(tmp_path, "adam", seed, [4, 3 * wobble], steps=10)
        write(tmp_path, "even", seed, [4, 1 * wobble], steps=10)
        write(tmp_path, "hasty", seed, [4, 3.01 * wobble], steps=10)
    frame, _ = frames.load(tmp_path)
    found = crossings.crossings(frame, trials.trials(frame))
    pairs = set(found[["first", "second", "total_steps", "since"]].itertuples(index=False, name=None))
    assert pairs == {("adam", "hasty", 100, 50), ("even", "hasty", 100, 50)}
    for seed in range(4):
        write(tmp_path, "even", seed, [4, 3, 2, 1, 0.3 * (1 + seed / 100)])
    frame, _ = frames.load(tmp_path)
    found = crossings.crossings(frame, trials.trials(frame))
    pairs = set(found[["first", "second", "total_steps", "since"]].itertuples(index=False, name=None))
    assert ("adam", "even", 100, 10) in pairs
    warned = "\n".join(checks.warnings(frames.read(tmp_path), trials.trials(frame)))
    assert "adam is ahead of hasty at the end, and was behind after 50 steps" in warned


def test_the_best_at_the_edge_and_a_target_that_was_lost_are_named(tmp_path):
    for rate in (0.1, 0.2, 0.3, 0.4, 0.5):
        write(tmp_path, "adam", 0, [4, 1, 1 - rate], learning_rate=rate, momentum=0.0)
        write(tmp_path, "sgd", 0, [4, 1, abs(rate - 0.3)], learning_rate=rate)
        write(tmp_path, "few", 0, [4, 1, 1 - rate], learning_rate=max(rate, 0.2))
        write(tmp_path, "zero", 0, [4, 1, rate], learning_rate=0.1, weight_decay=rate - 0.1)
    found = edges.edges(ends_of(tmp_path))
    assert found[["optimizer", "hyperparameter", "value", "edge", "tried"]].to_numpy().tolist() == [
        ["adam", "learning_rate", 0.5, "highest", 5]
    ]
    write(tmp_path, "lost", 0, [4, 0.4, 0.6])
    folder = frames.read(tmp_path)
    warned = "\n".join(checks.warnings(folder, trials.trials(folder.frame)))
    assert (
        "edge of what was tried in t (p, 100 steps): adam learning_rate=0.5, the highest of 5" in warned
    )
    assert "Target reached and lost again in t (p, 100 steps): lost on 1 of 1." in warned


def test_one_seed_and_one_lesson_seed_are_named(tmp_path):
    for seed in range(3):
        write(tmp_path, "adam", seed, SLOW, lessons=1)
        write(tmp_path, "fast", seed, FAST, lessons=1)
    write(tmp_path, "lone", 0, FAST, lessons=1)
    folder = frames.read(tmp_path)
    warned = "\n".join(checks.warnings(folder, trials.trials(folder.frame)))
    assert "One lesson seed only: adam, fast in t (p, 100 steps)" in warned
    assert "One seed only, hence no interval: lone in" in warned
    assert "Unpaired" not in warned


def test_tables_name_students_only_where_there_are_crowds(tmp_path):
    for seed in range(3):
        write(tmp_path / "own", "adam", seed, SLOW)
        write(tmp_path / "own", "fast", seed, FAST)
        write(tmp_path / "crowd", "adam", seed, SLOW, lessons=1)
        write(tmp_path / "crowd", "fast", seed, FAST, lessons=1)
    own, crowds = (
        tables.readable(speedups.speedups(ends_of(tmp_path / x), "adam")) for x in ("own", "crowd")
    )
    assert "smallest detectable" in own
    assert "students" not in own
    assert {"students", "baseline students"} <= {*crowds}
