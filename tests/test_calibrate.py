"""Calibration: what comparisons say of ratios that are known."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis import figures
from analysis.statistics import calibration
from benchmarks import calibrate
from optimizers.wrappers.slowed import active_steps
from testbed import records
from tests.users import refusal

WORDS = ("--task", "tiny", "--steps", "24", "--students", "2", "--blocks", "6", "--repetitions", "1")


def comparisons(n=400, seed=0, bias=0.0, spread=0.02):
    """Comparisons whose intervals are right, but for a bias."""
    rng = np.random.default_rng(seed)
    rows = []
    for task in ("a", "b"):
        for factor in (1.0, 1.05, 1.5):
            logs = math.log(factor) + bias + spread * rng.standard_normal(n)
            half = 1.959964 * spread
            rows += [
                {
                    "task": task,
                    "factor": factor,
                    "truth": factor,
                    "ratio": math.exp(x),
                    "low": math.exp(x - half),
                    "high": math.exp(x + half),
                    "students": 24,
                }
                for x in logs
            ]
    return pd.DataFrame(rows)


def test_right_answers_have_no_bias_and_cover_as_often_as_they_say():
    table = calibration.cells(comparisons())
    assert len(table) == 2 * 3 + 1
    assert (table["bias"].abs() < 3.5 * table["bias_error"]).all()
    every = table.iloc[-1]
    assert every["task"] == "all"
    assert every["covers_low"] < 0.95 < every["covers_high"]
    assert every["n"] == every["answered"] == 2400
    cells = table.set_index(["task", "factor"])
    assert (cells.xs(1.0, level="factor")["apart"] < 0.08).all()
    assert (cells.xs(1.5, level="factor")["apart"] == 1).all()
    assert cells.xs(1.5, level="factor")["wrong_way"].sum() == 0
    np.testing.assert_allclose(table["half_width"], 0.0392, rtol=1e-3)


def test_a_bias_is_found_and_costs_coverage():
    table = calibration.cells(comparisons(bias=0.03))
    np.testing.assert_allclose(table["bias"], math.expm1(0.03), atol=0.004)
    assert table["covers"].iloc[-1] < 0.75


def test_comparisons_without_an_answer_are_counted_and_make_no_estimate():
    frame = comparisons(n=10)
    lost = frame["factor"] == 1.05
    frame.loc[lost, ["truth", "ratio", "low", "high"]] = math.nan
    table = calibration.cells(frame).set_index(["task", "factor"])
    assert table.loc[("a", 1.05), "n"] == 10
    assert table.loc[("a", 1.05), "answered"] == 0
    assert math.isnan(table.loc[("a", 1.05), "covers"])
    assert table.iloc[-1]["answered"] == 40


@pytest.mark.parametrize("n", [0, 1, 14])
def test_the_figure_has_a_panel_for_each_task(n):
    frame = comparisons(n=14)
    if n == 0:
        frame[["ratio", "low", "high"]] = math.nan
    figure = figures.calibration(frame.groupby(["task", "factor"]).head(max(n, 1)))
    assert len(figure.axes) == (2 if n else 1)
    figure.canvas.draw()


def test_true_comparisons_are_made_reported_and_not_made_twice(command, tiny_task, tmp_path):
    words = (*WORDS, "--factor", "1", "--factor", "1.5", "--out", tmp_path / "runs")
    status, shown, said = command(calibrate, *words, "--report", tmp_path / "report")
    assert status == 0, said
    assert "comparisons: 95 % intervals hold the truth" in shown
    found = pd.read_csv(tmp_path / "report" / "calibration-comparisons.csv")
    assert found["factor"].tolist() == [1.0, 1.5]
    assert found["optimizer"].tolist() == ["adam", "adam"]
    for _, row in found[found["ratio"].notna()].iterrows():
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["students"] == 12
        assert math.isclose(row["truth"], row["factor"], rel_tol=0.1)
    assert (tmp_path / "report" / "calibration.png").exists()
    of_slowed = {r.header["seed"] for r in records.read_folder(tmp_path / "runs")}
    assert len(of_slowed) >= 2 * 2 * 7 * 2, "each comparison, block and optimizer has its own students"
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.jsonl")}
    assert command(calibrate, *words, "--report", tmp_path / "report")[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.jsonl")} == before
    again = pd.read_csv(tmp_path / "report" / "calibration-comparisons.csv")
    pd.testing.assert_frame_equal(again, found)


def test_the_truth_is_that_of_whole_steps_and_of_each_blocks_horizon():
    assert active_steps(101, 1.05) == 96
    assert calibrate.truth(np.array([101] * 6), 1.05) == pytest.approx(101 / 96)
    assert calibrate.truth(np.array([101, 21]), 1.05) == pytest.approx(math.sqrt(101 / 96 * 21 / 20))
    assert calibrate.truth(np.array([101, 98]), 1.0) == 1


def test_what_is_no_weight_is_refused(command, tiny_task):
    assert "must be a number from 1" in refusal(command, calibrate, "--factor", "0.9")
    assert "must be a number from 1" in refusal(command, calibrate, "--precision", "x")
    assert "the pilot has 6" in refusal(command, calibrate, "--blocks", "5")
    assert "nothing is there to be detected" in refusal(command, calibrate, "--precision", "1")
    assert "--opt adamm: unknown" in refusal(command, calibrate, "--opt", "adamm")
