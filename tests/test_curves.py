"""Curves against NumPy, and how each trial counts in them."""

import time

import numpy as np
import pandas as pd
import pytest

from analysis.statistics.curves import curves
from testbed.metrics import METRICS as ROWS

METRICS = tuple(f"{part}_{row.name}" for part in ("train", "validation", "test") for row in ROWS[:5])


def measurements(trials, steps=(0, 10, 20, 30), total_steps=30, label="adam"):
    """A frame of trials {seed: (status, values of all metrics along the steps)}."""
    rows = [
        {
            "run_id": f"{label}-{seed}",
            "task": "t",
            "protocol": "p",
            "total_steps": total_steps,
            "optimizer": label.split()[0],
            "label": label,
            "seed": seed,
            "status": status,
            "step": step,
            "epoch": step / 10,
            "train_seconds": step / 100 + seed,
            **dict.fromkeys(METRICS, value),
        }
        for seed, (status, values) in trials.items()
        for step, value in zip(steps, values, strict=False)
    ]
    return pd.DataFrame(rows)


def test_curves_are_numpy_s_quartiles():
    values = np.random.default_rng(0).random((7, 4))
    table = curves(measurements({seed: ("finished", row) for seed, row in enumerate(values)}))
    assert set(table["n"]) == {7}
    for metric in METRICS:
        expected = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
        found = table[[f"{metric}_low", metric, f"{metric}_high"]].to_numpy().T
        np.testing.assert_allclose(found, expected, rtol=1e-14)
    np.testing.assert_allclose(table["train_seconds"], table["step"] / 100 + 3)


def test_a_diverged_trial_is_the_worst_at_all_later_steps():
    """Its breakdown at a step of its own adds no point to the curve."""
    fine = measurements({seed: ("finished", [4, 3, 2, 1]) for seed in range(2)})
    lost = measurements({2: ("diverged", [4, 3, np.nan])}, steps=(0, 10, 13))
    table = curves(pd.concat([fine, lost], ignore_index=True)).set_index("step")
    assert [*table.index] == [0, 10, 20, 30]
    assert set(table["n"]) == {3}
    assert [*table["validation_kl"]] == [4, 3, 2, 1]
    assert [*table["validation_kl_high"]] == [4, 3, np.inf, np.inf]
    assert [*table["test_accuracy_low"]] == [4, 3, -np.inf, -np.inf]
    table = curves(pd.concat([fine[fine["seed"] == 0], lost], ignore_index=True)).set_index("step")
    assert [*table["validation_kl"]] == [4, 3, np.inf, np.inf], "half of them, and more, are lost"


def test_a_label_with_only_diverged_trials_is_as_long_as_its_group():
    fine = measurements({0: ("finished", [4, 3, 2, 1])})
    lost = measurements({0: ("diverged", [4, np.nan])}, label="sgd")
    never = measurements({0: ("diverged", [np.nan])}, label="lion")
    table = curves(pd.concat([fine, lost, never], ignore_index=True))
    by_label = {label: [*own["train_kl"]] for label, own in table.groupby("label")}
    inf = np.inf
    assert by_label == {"adam": [4, 3, 2, 1], "sgd": [4, inf, inf, inf], "lion": [inf] * 4}


@pytest.mark.parametrize("status", ["diverged", "failed"])
@pytest.mark.parametrize(
    ("values", "kls", "steps"),
    [
        ([4, 3, np.nan], [4, 3, np.inf], [0, 10, 30]),
        ([4, 3], [4, 3, np.inf], [0, 10, 30]),
        ([np.nan], [np.inf, np.inf], [0, 30]),
    ],
)
def test_a_configuration_with_only_lost_trials_is_lost_at_the_horizon(status, values, kls, steps):
    """Even though no trial got there, and all broke down at one step."""
    table = curves(measurements(dict.fromkeys(range(3), (status, values))))
    assert table["step"].tolist() == steps
    assert table["train_kl"].tolist() == kls
    assert table["test_accuracy"].iloc[-1] == -np.inf
    assert set(table["n"]) == {3}


def test_an_unfinished_trial_is_absent_after_its_last_step():
    trials = {0: ("finished", [4, 3, 2, 1]), 1: ("unfinished", [6, 5])}
    table = curves(measurements(trials)).set_index("step")
    assert [*table["n"]] == [2, 2, 1, 1]
    assert [*table["validation_kl"]] == [5, 4, 2, 1]
    # A lost trial next to it gives no values at steps that the unfinished one has not reached.
    table = curves(measurements({0: ("diverged", [4]), 1: ("unfinished", [6, 5])})).set_index("step")
    assert [*table["validation_kl"]] == [5, np.inf]


def test_trials_without_seconds_have_none():
    frame = measurements({0: ("finished", [4, 3, 2, 1])}).assign(train_seconds=np.nan)
    assert curves(frame)["train_seconds"].isna().all()


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_two_thousand_trials_take_seconds(status):
    n, steps = 2000, np.arange(100)
    frame = pd.DataFrame({"step": np.tile(steps, n), "trial": np.repeat(np.arange(n), len(steps))})
    frame["label"] = (frame["trial"] // 5).astype(str)
    frame = frame.assign(run_id=frame["trial"].astype(str), task="t", protocol="p", total_steps=99)
    frame = frame.assign(optimizer="adam", status=status, epoch=0.0, train_seconds=np.nan)
    frame[[*METRICS]] = np.random.default_rng(0).random((len(frame), len(METRICS)))
    begin = time.process_time()
    table = curves(frame[(frame["step"] < 50) | (frame["trial"] % 2 > 0)])
    assert time.process_time() - begin < 4
    assert len(table) == 400 * 100
    # A label of five trials has two or three even ones.
    assert (table["n"] == 5).all() == (status == "diverged")
