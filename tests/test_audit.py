"""The overfitting audit and the sensitivity to the learning rate, against laws that they must find."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import frames
from analysis.statistics import overfitting as audit
from analysis.statistics import sensitivity, trials
from tests.test_analysis import write
from tests.test_tuning import ends, trial


def curve(steps, train, validation, run_id="a", status="finished", **named):
    """Measurements of one trial, with the columns that the audit reads."""
    plain = {
        "task": "t",
        "total_steps": 1000,
        "protocol": "p",
        "optimizer": "adam",
        "label": "adam",
        "seed": 0,
    }
    return pd.DataFrame(
        {"run_id": run_id, **(plain | named), "status": status}
        | {"step": steps, "train_kl": train, "validation_kl": validation}
    )


STEPS = np.arange(0, 1001, 50)


def test_the_trend_of_a_gap_that_is_a_power_of_the_steps_is_its_exponent():
    early = STEPS < 100  # what happens before a tenth of the steps does not count
    gap = np.where(early, 77.0, np.maximum(STEPS, 1) ** 0.3)
    row = audit.per_trial(curve(STEPS, np.ones(len(STEPS)), gap)).iloc[0]
    assert row["trend"] == pytest.approx(0.3, rel=1e-12)
    assert row["gap"] == pytest.approx(1000**0.3)
    assert row["gap_at_quarter"] == pytest.approx(250**0.3)
    assert row["rise"] == pytest.approx((1000 / 100) ** 0.3)


def test_the_trend_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    parts = [
        curve(STEPS, rng.uniform(1, 2, len(STEPS)), rng.uniform(1, 2, len(STEPS)), f"{i}", seed=i)
        for i in range(5)
    ]
    table = audit.per_trial(pd.concat(parts[::-1])).set_index("run_id")
    for part in parts:
        late = part[part["step"] >= 100]
        fit = stats.linregress(np.log(late["step"]), np.log(late["validation_kl"] / late["train_kl"]))
        assert table.loc[part["run_id"].iloc[0], "trend"] == pytest.approx(fit.slope, rel=1e-9)


def test_the_numbers_of_a_trial_are_those_of_its_last_measurement():
    """A score that is not finite at the end is not replaced by an earlier one."""
    frame = curve([0, 250, 500, 1000], [4, 2, 1, 0.5], [4, 3, 2, 3])
    row = audit.per_trial(frame.sample(frac=1, random_state=0)).iloc[0]
    assert row[["train_kl", "validation_kl", "gap", "gap_at_quarter", "rise"]].tolist() == [
        0.5,
        3,
        6,
        1.5,
        1.5,
    ]
    lost = audit.per_trial(curve([0, 500, 1000], [4, 2, 1], [4, 2, np.nan])).iloc[0]
    assert lost[["validation_kl", "gap", "rise"]].isna().all()
    assert lost["train_kl"] == 1


def test_diverged_trials_are_counted_and_give_no_numbers():
    whole = [curve([0, 500, 1000], [4, 2, 1], [4, 2, 1 + i], f"{i}", seed=i) for i in range(5)]
    broken = curve([0, 500], [4, 2], [4, 2], "x", "diverged", seed=5)
    per_trial = audit.per_trial(pd.concat([*whole, broken])).set_index("run_id")
    assert len(per_trial) == 6
    assert per_trial.loc["x", audit.NUMBERS].isna().all()
    row = audit.audit(pd.concat([*whole, broken])).iloc[0]
    assert (row["n"], row["diverged"]) == (6, 1)
    assert (row["gap"], row["gap_low"], row["gap_high"]) == (3, 1, 5)
    few = audit.audit(pd.concat([*whole[:4], broken])).iloc[0]
    assert few["gap"] == 2.5
    assert np.isnan(few["gap_low"]), "four values make no interval"


def ranks_by_hand(values):
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def test_spearmans_correlation_is_that_of_ranks_by_hand_and_of_scipy():
    rng = np.random.default_rng(0)
    for size, decimals in ((5, 9), (30, 9), (30, 0)):  # the last with many ties
        x = rng.normal(size=(4, size)).round(decimals)
        y = (x + rng.normal(size=(4, size))).round(decimals)
        found = audit.spearman(x, y)
        for row in range(4):
            by_hand = np.corrcoef(ranks_by_hand(x[row]), ranks_by_hand(y[row]))[0, 1]
            assert found[row] == pytest.approx(by_hand, rel=1e-12)
            assert found[row] == pytest.approx(stats.spearmanr(x[row], y[row]).statistic, rel=1e-12)


def finals(train, validation, optimizer="adam"):
    """Trials that end with these values."""
    names = [f"{optimizer}{i}" for i in range(len(train))]
    start = curve(0, 9.0, 9.0, names, optimizer=optimizer)
    return pd.concat([start, curve(1000, train, validation, names, optimizer=optimizer)])


def test_rank_correlation_is_of_all_trials_and_of_optimizers_with_enough():
    rng = np.random.default_rng(0)
    train = rng.uniform(1, 2, 10)
    other = train + rng.normal(0, 0.3, 10)
    frame = pd.concat(
        [
            finals(train, other, optimizer="adam"),
            finals(train[:7], 1 / train[:7], optimizer="few"),
            curve([0, 500], [9, 1], [9, 1], "lost", "diverged", optimizer="adam"),
        ]
    )
    table = audit.rank_correlation(frame).set_index("optimizer")
    assert list(table.index) == ["all", "adam"]
    assert table["n"].to_dict() == {"all": 17, "adam": 10}
    assert table["diverged"].to_dict() == {"all": 1, "adam": 1}
    expected = stats.spearmanr([*train, *train[:7]], [*other, *1 / train[:7]]).statistic
    assert table.loc["all", "spearman"] == pytest.approx(expected, rel=1e-12)
    pairs = [(i, j) for i in range(10) for j in range(i)]
    same = np.mean([(train[i] < train[j]) == (other[i] < other[j]) for i, j in pairs])
    assert table.loc["adam", "concordance"] == pytest.approx(same, rel=1e-12)
    assert (table["low"] < table["spearman"]).all()
    assert (table["spearman"] < table["high"]).all()


def test_the_interval_of_the_rank_correlation_covers_it():
    """Spearman's correlation of normal variables with correlation r is 6 / pi * asin(r / 2)."""
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    covered = 0
    for _ in range(40):
        x, noise = rng.normal(size=(2, 40))
        row = audit.rank_correlation(finals(np.exp(x), np.exp(0.6 * x + 0.8 * noise))).iloc[0]
        covered += row["low"] <= truth <= row["high"]
    assert 34 <= covered <= 40


def test_too_little_to_audit_raises_nothing():
    empty = pd.DataFrame()
    assert list(audit.per_trial(empty).columns) == [*audit.TRIAL, *audit.NUMBERS]
    assert list(audit.rank_correlation(empty).columns) == audit.CORRELATION
    assert audit.audit(empty).empty
    one = curve([0], [4], [4], status="unfinished")
    assert np.isnan(audit.per_trial(one)["trend"].iloc[0])
    assert audit.audit(one)["n"].tolist() == [1]
    assert audit.audit(one.drop(columns="train_kl"))["n"].tolist() == [1]
    zero = curve([0, 500, 1000], [1, 0, 0], [1, np.nan, 0])
    lost = curve([0, 500], [np.nan, np.nan], [np.nan, np.nan], status="diverged")
    for frame in (one, zero, lost, finals([1.0] * 9, [2.0] * 9)):
        row = audit.rank_correlation(frame).iloc[0]
        assert np.isnan(row["spearman"])
        assert len(audit.audit(frame)) == 1


def test_two_thousand_trials_are_audited_quickly():
    steps = np.arange(0, 2000, 10)
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 2, (2, 2000 * len(steps)))
    frame = curve(np.tile(steps, 2000), *values).assign(
        run_id=np.repeat([f"{i:04}" for i in range(2000)], len(steps))
    )
    start = time.perf_counter()
    assert len(audit.per_trial(frame)) == 2000
    assert time.perf_counter() - start < 3


def valley(rates, losses, **named):
    return [trial(0, rate, loss, 5.0, **named) for rate, loss in zip(rates, losses, strict=True)]


def test_losses_are_relative_to_the_best_learning_rate():
    rows = [*valley([0.001, 0.01, 0.1], [0.6, 0.3, 0.4]), trial(0, 1.0, 0.2, 5.0, "diverged")]
    rows += [trial(seed, 0.01, loss, 5.0) for seed, loss in ((1, 0.5), (2, 0.2))]
    points = sensitivity.sensitivity(ends(rows))
    assert points["learning_rate"].tolist() == [0.001, 0.01, 0.1, 1.0]
    assert points["relative"].tolist() == pytest.approx([0.1, 1, 10, 100])
    assert points["metric"].tolist() == [0.6, 0.3, 0.4, np.inf]
    assert points["loss_ratio"].tolist() == pytest.approx([2, 1, 4 / 3, np.inf])
    assert points["n"].tolist() == [1, 3, 1, 1]
    assert points["diverged"].tolist() == [0, 0, 0, 1]


def test_where_more_is_better_the_ratio_is_inverted():
    rows = valley([0.001, 0.01, 0.1], [0.4, 0.8, 0.0], mode="max", metric="accuracy")
    rows.append(trial(0, 1.0, 0.9, 5.0, "diverged", mode="max", metric="accuracy"))
    points = sensitivity.sensitivity(ends(rows))
    assert points["loss_ratio"].tolist() == [2, 1, np.inf, np.inf]
    assert points["metric"].tolist() == [0.4, 0.8, 0, -np.inf]


def test_the_width_is_that_of_the_lower_envelope():
    """Loss 1 + log10(rate / 0.1)^2: within 10 % to a factor of 10^0.316 = 2.07 on both sides."""
    rates = 0.1 * 10.0 ** (np.arange(-8, 9) / 4)
    best = valley(rates, 1 + np.log10(rates / 0.1) ** 2)
    above = valley(rates * 1.01, 3 + np.log10(rates / 0.1) ** 2)
    above.append(trial(0, 0.1 * 10**0.26, np.nan, np.nan, "diverged"))
    points = sensitivity.sensitivity(ends(best + above))
    row = sensitivity.width(points).iloc[0]
    assert row["learning_rate"] == pytest.approx(0.1)
    assert row["low"] == pytest.approx(0.1 * 10**-0.25)
    assert row["high"] == pytest.approx(0.1 * 10**0.25)
    assert row["factor"] == pytest.approx(10**0.5)
    assert not row["at_edge"]
    assert row["points"] == 2 * 17 + 1


def test_a_second_valley_does_not_widen_the_first_and_an_edge_is_reported():
    rates, losses = [0.001, 0.01, 0.1, 1.0], [1.0, 1.05, 3.0, 1.02]
    row = sensitivity.width(sensitivity.sensitivity(ends(valley(rates, losses)))).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((0.001, 0.01))
    assert row["at_edge"]


def test_too_few_learning_rates_give_nothing_and_all_diverged_is_reported(tmp_path):
    for few in (pd.DataFrame(), ends(valley([0.1, 0.2], [1, 2]))):
        points = sensitivity.sensitivity(few)
        assert points.empty
        assert list(points.columns) == sensitivity.POINTS
        assert list(sensitivity.width(points).columns) == sensitivity.WIDTHS
    rows = [trial(0, rate, np.nan, np.nan, "diverged") for rate in (0.1, 0.2, 0.3)]
    rows += [dict(row, hyperparameters=json.dumps({"warmup": i})) for i, row in enumerate(rows)]
    points = sensitivity.sensitivity(ends(rows))
    assert len(points) == 3
    row = sensitivity.width(points).iloc[0]
    assert np.isnan(row["learning_rate"])
    assert not row["at_edge"]


def test_records_are_audited(tmp_path):
    for seed in range(3):
        for rate in (0.1, 0.2, 0.3):
            write(tmp_path, "adam", seed, [4, 1 + rate, 0.5 + rate + seed / 100], learning_rate=rate)
    frame, _ = frames.load(tmp_path)
    table = audit.audit(frame)
    assert table["n"].tolist() == [3] * 3
    assert table["gap"].tolist() == [1] * 3
    assert audit.rank_correlation(frame)["spearman"].tolist() == [1, 1]
    points = sensitivity.sensitivity(trials.trials(frame))
    assert points["loss_ratio"].tolist() == pytest.approx([1, 0.71 / 0.61, 0.81 / 0.61])
