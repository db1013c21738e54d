"""Statistics against brute force, and reports of all sorts of folders."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import frames, report
from analysis.statistics import matched_quality, speedups, summary, survival, trials
from testbed import records
from testbed.cli import serve

TARGET = {"metric": "validation_kl", "value": 0.5, "mode": "min"}


def write(
    folder,
    optimizer,
    seed,
    curve,
    steps=100,
    status="finished",
    protocol="p",
    source="s",
    lessons=None,
    **hp,
):
    """A record whose KLs are `curve`, at even steps; accuracies fall and rise with them."""
    identity = {
        "task": "t",
        "task_fingerprint": "f",
        "protocol": protocol,
        "optimizer": optimizer,
        "optimizer_sha256": source,
        "hyperparameters": {"learning_rate": 0.1} | hp,
        "seed": seed,
        "total_steps": steps,
    }
    identity |= {} if lessons is None else {"lesson_seed": lessons}
    run_id = records.run_id(identity)
    path = folder / "t" / optimizer / f"{run_id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "kind": "header",
        "schema": 1,
        "run_id": run_id,
        **identity,
        "target": TARGET,
        "timed": True,
    }
    rows = [
        {
            "kind": "measurement",
            "step": round(i * steps / (len(curve) - 1)),
            "train_seconds": 0.1 * i,
            "train_kl": kl,
            "validation_kl": kl,
            "test_kl": kl,
            **{
                f"{part}_{share}": None if kl is None else 1 - kl / 10
                for part in ("validation", "test")
                for share in ("agreement", "accuracy")
            },
        }
        for i, kl in enumerate(curve)
    ]
    records.append(path, header, *rows, {"kind": "end", "status": status}, at=0)
    return path


FAST, SLOW, NEVER = [4, 0.4, 0.3, 0.2, 0.1], [4, 2, 1, 0.45, 0.4], [4, 3, 2, 1, 0.9]


@pytest.fixture
def folder(tmp_path):
    for seed in range(5):
        write(tmp_path, "fast", seed, FAST)
        write(tmp_path, "adam", seed, SLOW)
        write(tmp_path, "never", seed, NEVER if seed else FAST)
    return tmp_path


def test_frames_are_tidy(folder):
    frame, errors = frames.load(folder)
    assert errors == []
    assert len(frame) == 15 * 5
    assert not frame.duplicated(["run_id", "step"]).any()
    assert set(frame["label"]) == {"fast", "adam", "never"}
    assert set(frame["status"]) == {"finished"}


def test_labels_contain_only_what_differs(tmp_path):
    write(tmp_path, "adam", 0, FAST)
    assert set(frames.load(tmp_path)[0]["label"]) == {"adam"}
    write(tmp_path, "adam", 0, FAST, learning_rate=0.2)
    assert set(frames.load(tmp_path)[0]["label"]) == {"adam learning_rate=0.1", "adam learning_rate=0.2"}
    for path in tmp_path.rglob("*.jsonl"):
        path.unlink()
    write(tmp_path, "adam", 0, FAST, protocol="p")
    write(tmp_path, "adam", 0, FAST, protocol="q")
    assert set(frames.load(tmp_path)[0]["label"]) == {"p", "q"}
    for path in tmp_path.rglob("*.jsonl"):
        path.unlink()
    write(tmp_path, "adam", 0, FAST, source="aaaaaaaa")
    write(tmp_path, "adam", 0, FAST, source="bbbbbbbb")
    write(tmp_path, "sgd", 0, FAST)
    assert set(frames.load(tmp_path)[0]["label"]) == {"adam@aaaaaa", "adam@bbbbbb", "sgd"}


def test_steps_to_target_are_those_of_the_first_good_measurement(folder):
    ends = trials.trials(frames.load(folder)[0])
    steps = ends.set_index(["optimizer", "seed"])["steps_to_target"]
    assert set(steps["fast"]) == {25}
    assert set(steps["adam"]) == {75}
    assert steps["never"][0] == 25
    assert steps["never"].isna().sum() == 4
    seconds = ends.set_index(["optimizer", "seed"])["seconds_to_target"]
    assert seconds["adam"].tolist() == pytest.approx([0.3] * 5)


def test_summary_counts_misses_instead_of_dropping_them(folder):
    table = summary.summary(trials.trials(frames.load(folder)[0])).set_index("label")
    assert table.loc["never", "reached"] == "1 of 5"
    assert table.loc["never", "steps_to_target"] == "not reached"
    assert table.loc["fast", "steps_to_target"] == "25 [25, 25]"
    assert table.loc["fast", "n"] == 5


def test_speedups_are_paired_by_seed(folder):
    table = speedups.speedups(trials.trials(frames.load(folder)[0]), "adam")
    steps = table[table["axis"] == "steps"].set_index("label")
    # Seen after 75 and 25 steps, but at their first measurement: it may be 50 and 1.
    assert steps.loc["fast", ["speedup", "low", "high"]].tolist() == pytest.approx([3, 2, np.inf])
    assert steps.loc["fast", ["wins", "n"]].tolist() == [5, 5]
    assert steps.loc["fast", "p_faster"] > 0.99
    assert steps.loc["never", ["wins", "n", "reached", "reached_over"]].tolist() == [1, 5, 1, 5]
    assert steps.loc["never", "low"] < 0.75, "its four misses were not dropped"
    assert steps["paired"].all()


def test_matched_quality_interpolates_in_logarithms(tmp_path):
    """KL = c / steps: an optimizer with half the c needs half the steps at any quality."""
    for seed in range(5):
        for steps in (100, 400, 1600):
            write(tmp_path, "adam", seed, [9, 100 / steps], steps)
            write(tmp_path, "half", seed, [9, 50 / steps], steps)
    table = matched_quality.matched_quality(trials.trials(frames.load(tmp_path)[0]), "adam")
    table = table.set_index("horizon")
    for horizon in (400, 1600):
        found = table.loc[horizon]
        assert found[["speedup", "low", "high"]].tolist() == pytest.approx([2, 2, 2])
        assert found["needed"] == pytest.approx(horizon / 2)
        assert found["bound"] == ""
    # At 100 steps the other is better from its first horizon on: a bound, and named as one.
    assert table.loc[100, ["speedup", "low", "high", "bound"]].tolist() == [1, 1, np.inf, "at least"]


def test_matched_quality_covers_what_it_interpolates_between_noisy_ends(tmp_path):
    """Its interval is what a paired t-test of log KL at the other's interpolated steps accepts."""
    rng = np.random.default_rng(0)
    for seed in range(5):
        for steps in (100, 400, 1600):
            for name, c in (("adam", 100), ("half", 50)):
                write(tmp_path, name, seed, [9, c / steps * np.exp(0.1 * rng.normal())], steps)
    ends = trials.trials(frames.load(tmp_path)[0])
    found = matched_quality.matched_quality(ends, "adam").set_index("horizon").loc[400]
    kl = ends.pivot_table(index=["optimizer", "seed"], columns="total_steps", values="test_kl")

    def rejected(speedup):
        at = [np.interp(np.log(400 / speedup), np.log([100, 400, 1600]), np.log(kl.loc["half", s]))
              for s in range(5)]  # fmt: skip
        return stats.ttest_rel(at, np.log(kl.loc["adam"][400])).pvalue < 0.05

    assert 1 < found["low"] < found["speedup"] < found["high"] < 4
    assert rejected(found["low"] * 0.999)
    assert not rejected(found["low"] * 1.001)
    assert rejected(found["high"] * 1.001)
    assert not rejected(found["high"] * 0.999)


def test_a_diverged_trial_counts_as_no_better_than_untrained(tmp_path):
    for seed in range(5):
        for steps in (100, 400):
            write(tmp_path, "adam", seed, [2, 0.5 if steps == 100 else 0.3], steps)
            lost = steps == 400 and seed == 0
            curve, status = ([2, None], "diverged") if lost else ([2, 0.4], "finished")
            write(tmp_path, "bad", seed, curve, steps, status)
    ends = trials.trials(frames.load(tmp_path)[0])
    found = matched_quality.matched_quality(ends, "adam").set_index("horizon")
    assert set(found["n"]) == {5}, "no seed was dropped"
    steps = ends.set_index(["optimizer", "seed", "total_steps"])
    assert steps.loc[("bad", 0, 400), ["status", "final"]].tolist() == ["diverged", 2]
    assert found.loc[100, "bound"] == "at least", "at 100 steps it is better than adam is"
    assert found.loc[400, "bound"] == "at most", "and never as good as adam at 400"


def test_the_best_configuration_is_one_of_those_with_most_seeds(tmp_path):
    write(tmp_path, "adam", 9, [4, 0.01], learning_rate=0.3)  # one lucky seed of a search
    for seed in range(3):
        write(tmp_path, "adam", seed, [4, 0.2], learning_rate=0.1)
        write(tmp_path, "adam", seed, [4, 0.1] if seed else [4, 0.5], learning_rate=0.2)
    ends = trials.trials(frames.load(tmp_path)[0])
    best = trials.best_per_optimizer(ends)
    assert set(best["hyperparameters"]) == {'{"learning_rate": 0.2}'}
    assert list(trials.resolve_baseline(ends, "adam").values()) == ["adam learning_rate=0.2"]


def test_unshared_seeds_are_compared_unpaired_and_reported(tmp_path):
    for seed in range(5):
        write(tmp_path, "adam", seed, SLOW)
        write(tmp_path, "fast", 10 + seed, FAST)
    found = speedups.speedups(trials.trials(frames.load(tmp_path)[0]), "adam").iloc[0]
    assert not found["paired"]
    assert found["speedup"] == pytest.approx(3)
    assert np.isnan(found["wins"])


def test_a_medians_curve_is_scipys(folder):
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 12):
        times, watched = rng.integers(1, 20, n).astype(float), rng.integers(5, 25, n).astype(float)
        reached = np.where(times <= watched, times, np.nan)
        censored = stats.CensoredData.right_censored(np.fmin(reached, watched), np.isnan(reached))
        at, curve = survival.survival(reached, watched, np.ones((1, n)))
        np.testing.assert_allclose(stats.ecdf(censored).sf.evaluate(at), curve[0])
        assert survival.median(times, times).value == np.median(times), "none is censored"
        resampled = rng.integers(0, n, n)
        counts = np.bincount(resampled, minlength=n)[None].astype(float)
        assert survival.medians(times, times, counts) == np.median(times[resampled])


def test_medians_with_misses_have_open_intervals():
    nan = np.nan
    assert str(survival.median([10, 20, nan, nan, nan], [100] * 5)) == "not reached"
    median = survival.median([10, 20, 30, nan, nan], [100] * 5)
    assert (median.value, median.low, median.high, median.missed, median.n) == (30, 10, np.inf, 2, 5)
    assert str(median) == "30 [10, ∞)"
    # A trial watched only until 15 may still have been the first: half of the rest arrive by 20.
    assert survival.median([10, nan, 20, 30], [10, 15, 20, 30]).value == 20
    assert str(survival.median([], [])) == "-"


def test_bootstrap_interval_of_a_median_covers_it():
    rng = np.random.default_rng(1)
    estimates = [summary.estimate(rng.normal(size=25)) for _ in range(100)]
    covered = sum(e.low <= 0 <= e.high for e in estimates)
    assert 88 <= covered <= 100
    assert str(summary.estimate([1.0, 2.0])) == "1.5", "two values make no interval"
    assert str(summary.estimate([])) == "-"


def test_a_report_is_written_and_agrees_with_the_records(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report"
    monkeypatch.setattr("sys.argv", ["report.py", str(folder), "--out", str(out)])
    report.main()
    assert "3 [2, ∞)" in capsys.readouterr().out
    csv, parquet = pd.read_csv(out / "measurements.csv"), pd.read_parquet(out / "measurements.parquet")
    assert len(csv) == len(parquet) == 75
    np.testing.assert_allclose(csv["validation_kl"], parquet["validation_kl"])
    for axis in ("step", "train_seconds"):
        for metric in ("kl", "agreement", "accuracy"):
            for ending in ("png", "svg"):
                assert (out / f"t-100-validation_{metric}-by-{axis}.{ending}").stat().st_size > 5000
    assert (out / "t-100-overfitting.png").exists()


def test_damaged_records_are_reported_and_skipped(folder, tmp_path, monkeypatch, capsys):
    victim = next(folder.rglob("*.jsonl"))
    victim.write_bytes(victim.read_bytes()[:-40] + b"\n{broken\n")
    (folder / "t" / "empty.jsonl").touch()
    monkeypatch.setattr("sys.argv", ["report.py", str(folder), "--out", str(tmp_path / "report")])
    report.main()
    captured = capsys.readouterr()
    assert captured.err.count("skipped") == 3
    assert "fast" in captured.out


@pytest.mark.parametrize("curve", [[4], [4, None], [None]])
def test_diverged_and_unfinished_trials_alone_make_a_report(curve, tmp_path):
    if len(curve) == 1:
        curve = [*curve, None]
    write(tmp_path, "bad", 0, curve, status="diverged")
    text = report.write(frames.read(tmp_path), tmp_path, "bad")
    assert "not reached" in text


def test_a_folder_without_records_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        serve(report.main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
