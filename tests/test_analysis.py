"""Statistics against brute force, and reports of all sorts of folders."""

import numpy as np
import pandas as pd
import pytest

from analysis import comparison, frames, report
from testbed import records

TARGET = {"metric": "validation_kl", "value": 0.5, "mode": "min"}


def write(folder, optimizer, seed, curve, steps=100, status="finished", protocol="p", source="s", **hp):
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
    frame, troubles = frames.load(folder)
    assert troubles == []
    assert len(frame) == 15 * 5
    assert not frame.duplicated(["run_id", "step"]).any()
    assert set(frame["label"]) == {"fast", "adam", "never"}
    assert set(frame["status"]) == {"finished"}


def test_labels_say_what_differs_and_no_more(tmp_path):
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
    ends = comparison.trials(frames.load(folder)[0])
    steps = ends.set_index(["optimizer", "seed"])["steps_to_target"]
    assert set(steps["fast"]) == {25}
    assert set(steps["adam"]) == {75}
    assert steps["never"][0] == 25
    assert steps["never"].isna().sum() == 4
    seconds = ends.set_index(["optimizer", "seed"])["seconds_to_target"]
    assert seconds["adam"].tolist() == pytest.approx([0.3] * 5)


def test_summary_counts_misses_instead_of_dropping_them(folder):
    table = comparison.summary(comparison.trials(frames.load(folder)[0])).set_index("label")
    assert table.loc["never", "reached"] == "1 of 5"
    assert table.loc["never", "steps_to_target"] == "not reached"
    assert table.loc["fast", "steps_to_target"] == "25 [25, 25]"
    assert table.loc["fast", "n"] == 5


def test_speedups_are_paired_by_seed(folder):
    table = comparison.speedups(comparison.trials(frames.load(folder)[0]), "adam").set_index("label")
    assert table.loc["fast", "speed-up in steps"] == "3 [3, 3]"
    assert table.loc["never", "pairs"] == "1 of 5"


def test_matched_quality_interpolates_in_logarithms(tmp_path):
    """KL = c / steps: an optimizer with half the c needs half the steps at any quality."""
    for seed in range(5):
        for steps in (100, 400, 1600):
            write(tmp_path, "adam", seed, [9, 100 / steps], steps)
            write(tmp_path, "half", seed, [9, 50 / steps], steps)
    table = comparison.matched_quality(comparison.trials(frames.load(tmp_path)[0]), "adam", "test_kl")
    table = table.set_index("for")
    assert table.loc["adam at 400 steps", "speed-up in steps"] == "2 [2, 2]"
    assert table.loc["adam at 1,600 steps", "speed-up in steps"] == "2 [2, 2]"
    assert table.loc["adam at 400 steps", "bounds"] == 0
    # At 100 steps the other is better from its first horizon on: a bound, and told as one.
    assert table.loc["adam at 100 steps", "bounds"] == 5
    assert table.loc["adam at 100 steps", "speed-up in steps"] == "at least 1"


def test_bootstrap_interval_of_a_median_covers_it():
    rng = np.random.default_rng(1)
    estimates = [comparison.estimate(rng.normal(size=25)) for _ in range(100)]
    covered = sum(e.low <= 0 <= e.high for e in estimates)
    assert 88 <= covered <= 100
    assert str(comparison.estimate([1.0, 2.0])) == "1.5", "two values make no interval"
    assert str(comparison.estimate([])) == "-"


def test_a_report_is_written_and_agrees_with_the_records(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report"
    monkeypatch.setattr("sys.argv", ["report.py", str(folder), "--out", str(out)])
    report.main()
    assert "3 [3, 3]" in capsys.readouterr().out
    csv, parquet = pd.read_csv(out / "measurements.csv"), pd.read_parquet(out / "measurements.parquet")
    assert len(csv) == len(parquet) == 75
    np.testing.assert_allclose(csv["validation_kl"], parquet["validation_kl"])
    for axis in ("step", "train_seconds"):
        for metric in ("kl", "agreement", "accuracy"):
            for ending in ("png", "svg"):
                assert (out / f"t-100-validation_{metric}-by-{axis}.{ending}").stat().st_size > 5000
    assert (out / "t-100-overfitting.png").exists()


def test_damaged_records_are_told_and_skipped(folder, tmp_path, monkeypatch, capsys):
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
    frame, _ = frames.load(tmp_path)
    text = report.write(frame, tmp_path)
    assert "not reached" in text


def test_a_folder_without_records_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        report.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
