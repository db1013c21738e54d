"""Reports of all sorts of folders, and comparisons of two: nothing is lost, and nothing is fatal."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import frames, report
from analysis.figures import axes
from analysis.output import checks, files, headlines, markdown, sections, tables
from analysis.statistics import curves, matched_quality, speedups, trials
from benchmarks.results import coverage, report_size
from testbed.cli import serve
from tests.test_analysis import FAST, NEVER, SLOW, write

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command: exit status, stdout, stderr."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["report.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            serve(report.main)
        return (end.value.code, *capsys.readouterr())

    return call


def edit(path, **fields):
    """Changes fields of a record's header."""
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | fields), *rest]) + "\n")


def edit_end(path, **fields):
    """Changes fields of a record's end."""
    *rest, last = path.read_text().splitlines()
    path.write_text("\n".join([*rest, json.dumps(json.loads(last) | fields)]) + "\n")


def warnings(folder):
    """The warnings of a folder, as one text."""
    found = frames.read(folder)
    return "\n".join(checks.warnings(found, trials.trials(found.frame)))


def test_seconds_of_a_process_that_was_stopped_are_not_compared_and_its_steps_are(tmp_path):
    """Of five seeds each, one of the rival's; as many say nothing of pauses, as older records do."""
    for seed in range(5):
        write(tmp_path, "adam", seed, SLOW)
        edit_end(write(tmp_path, "fast", seed, FAST), ledger={"paused_s": 12.0 if seed == 3 else 0.0})
    found = frames.read(tmp_path)
    assert found.frame.loc[found.frame["train_seconds"].isna(), "seed"].unique().tolist() == [3]
    table = speedups.speedups(trials.trials(found.frame), "adam").set_index("axis")
    assert table["n"].to_dict() == {"steps": 5, "seconds": 4}
    assert table.loc["seconds", "speedup"] == pytest.approx(3)
    assert "1 of 10 runs were stopped for a while as they trained: their seconds are not" in (
        warnings(tmp_path)
    )
    assert "batched" not in warnings(tmp_path)
    edit_end(write(tmp_path, "fast", 3, FAST), ledger={"paused_s": 0.0})
    assert "stopped" not in warnings(tmp_path)


def test_a_run_that_finished_worse_than_it_started_is_named(tmp_path):
    write(tmp_path, "fine", 0, [4, 2, 5, 3.9])
    write(tmp_path, "lost", 0, [4, 2, 5, 6], status="diverged")
    write(tmp_path, "running", 0, [4, 2, 5, 6], status="?")
    assert "finished worse" not in warnings(tmp_path)
    write(tmp_path, "wild", 0, [4, 1, 1, 1e10])
    write(tmp_path, "wild", 1, [4, 1, 1, None])
    edit(write(tmp_path, "more", 0, FAST), target={"metric": "test_kl", "value": 9, "mode": "max"})
    assert (
        "3 runs finished worse than they started, by their target's metric (wild: 2, more: 1)."
        in warnings(tmp_path)
    )


def test_roots_that_failed_are_counted_by_optimizer(tmp_path):
    edit_end(write(tmp_path, "shampoo", 0, FAST), counts={"failed_roots": 0, "resets": 2})
    write(tmp_path, "adam", 0, FAST)
    assert "roots" not in warnings(tmp_path)
    for seed in (1, 2):
        edit_end(write(tmp_path, "shampoo", seed, FAST), counts={"failed_roots": 120})
    assert "2 of 4 runs had inverse roots that failed (shampoo: 240)" in warnings(tmp_path)
    edit_end(write(tmp_path, "shampoo", 2, FAST), counts=[1])
    assert "1 of 4 runs had inverse roots that failed (shampoo: 120)" in warnings(tmp_path)


def test_it_loads_no_jax():
    code = "import sys, analysis.report; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_damaged_folder_makes_a_report_that_lists_every_fault(tmp_path, run):
    runs = tmp_path / "runs"
    for seed in range(3):
        write(runs, "fast", seed, FAST)
        write(runs, "adam", seed, SLOW)
    whole = sorted(runs.rglob("*.jsonl"))
    truncated = write(runs, "adam", 7, SLOW)
    truncated.write_bytes(truncated.read_bytes()[:-100])
    edit(write(runs, "adam", 8, SLOW), schema=99)
    header_only = write(runs, "adam", 9, SLOW)
    header_only.write_bytes(header_only.read_bytes().split(b"\n")[0] + b"\n")
    (runs / "t" / "copy.jsonl").write_bytes(whole[0].read_bytes())
    (runs / "t" / "empty.jsonl").touch()
    (runs / "t" / "binary.jsonl").write_bytes(bytes(range(256)) * 10)
    (runs / "t" / "list.jsonl").write_text('[1, 2]\n{"kind": "header", "schema": 1}\n')
    edit(write(runs, "adam", 10, SLOW), target={"metric": "beauty", "value": 1, "mode": "max"})
    edit(write(runs, "adam", 11, SLOW), total_steps="many")
    odd = write(runs, "adam", 12, SLOW)
    odd.write_text(odd.read_text().replace('"validation_kl": 2', '"validation_kl": "two"'))
    status, stdout, stderr = run(runs, "--out", tmp_path / "report")
    assert status == 0
    assert "fast reaches" in stdout
    for path, reason in (
        (truncated, "not a JSON object"),
        (runs / "t" / "copy.jsonl", "the same run as"),
        (runs / "t" / "empty.jsonl", "no header"),
        (runs / "t" / "binary.jsonl", "not a JSON object"),
        (runs / "t" / "list.jsonl", "its header has no run_id"),
        (header_only, "it holds a header only"),
        (odd, "validation_kl is 'two', not a number"),
    ):
        assert re.search(f"skipped {re.escape(str(path))}, line [0-9]+: .*{reason}", stderr), reason
    for reason in ("schema 99, not 1", "beauty, which is not measured", "its header has no total_steps"):
        assert reason in stderr
    page = (tmp_path / "report" / "index.html").read_text()
    for error in frames.read(runs).errors:
        assert error.path.name in page
    assert "Not used: " in (tmp_path / "report" / "summary.md").read_text()
    rows = pd.read_csv(tmp_path / "report" / "trials.csv")
    assert sorted(rows["seed"]) == [0, 0, 1, 1, 2, 2, 7, 12]
    assert set(rows.loc[rows["seed"] == 7, "status"]) == {"unfinished"}


HUGE = 10**400
ODD = [
    *(
        {name: odd}
        for name in ("git", "device", "batch", "init", "versions")
        for odd in ("x", [1], 7, True)
    ),
    *({"init": {"sha256": odd}} for odd in (None, 3)),
    *({"device": {"host": odd, "kind": odd}} for odd in (3, ["a"])),
    *({"git": {"commit": odd, "dirty": odd}} for odd in (3, ["a"])),
    *({name: odd} for name in ("seed", "total_steps") for odd in (True, 2**70, -HUGE, None, "1", 1.5)),
    *({"total_steps": odd} for odd in (0, -5)),
    *({"batch_size": odd} for odd in ([1], {}, HUGE, None)),
    *({"hyperparameters": odd} for odd in ([], None, {"learning_rate": HUGE}, {"a": [None, {"b": 1}]})),
    *({"target": {"metric": m, "value": 1, "mode": "min"}} for m in ("kind", "seed", "score", 5, None)),
    *(
        {"target": {"metric": "validation_kl", "value": v, "mode": "min"}}
        for v in (HUGE, True, "1", None)
    ),
    *({name: "\ud800"} for name in ("optimizer", "task", "command", "protocol")),
    {"optimizer": ""},
    {"protocol": None, "task_fingerprint": 3, "optimizer_sha256": ["x"], "lesson_seed": {}},
]


@pytest.mark.parametrize("fields", ODD, ids=lambda fields: str(fields)[:60])
def test_no_header_is_fatal(tmp_path, fields):
    for seed in range(3):
        write(tmp_path, "adam", seed, SLOW)
    edit(write(tmp_path, "odd", 0, FAST), **fields)
    everything_of(tmp_path)


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        *((-1, "status", odd) for odd in (["finished"], 3, None, "unheard of")),
        *((-1, "ledger", odd) for odd in ("x", [1], {"train_s": HUGE, "eval_s": [1]}, {"a": None})),
        *((-1, "resumed", odd) for odd in ("x", [], None)),
        *((2, name, 1.0) for name in ("label", "run_id", "seed", "task", "steps_to_target", "score")),
        *((2, "validation_kl", odd) for odd in (HUGE, "two", [1], {}, True, "\ud800")),
        *((2, "step", odd) for odd in (-3, HUGE, True)),
        (2, "\ud800", 1.0),
    ],
    ids=str,
)
def test_no_row_is_fatal(tmp_path, row, field, value):
    for seed in range(3):
        write(tmp_path, "adam", seed, SLOW)
    path = write(tmp_path, "odd", 0, FAST)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[row][field] = value
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    everything_of(tmp_path)


def everything_of(folder):
    """All but the figures: of three good records and an odd one."""
    found = frames.read(folder)
    assert 3 <= len(found.runs) <= 4
    assert len(found.runs) == 4 or found.errors, "a record that is left out is an error"
    ends = trials.trials(found.frame)
    (folder / "out").mkdir()
    report.write_data(found, ends, folder / "out")
    checks.warnings(found, ends)
    tables.runs_table(found.runs, ends, folder)
    tables.provenance(found.runs)
    lines, ratios = curves.curves(found.frame), speedups.speedups(ends, "adam")
    matched = matched_quality.matched_quality(ends, "adam")
    assert list(sections.sections(found, ends, lines, ratios, matched, "adam", {}))
    assert list(headlines.headlines(trials.best_per_optimizer(ends), ratios, matched))


def test_labels_are_different_for_different_configurations(tmp_path):
    for rate in (0.10011, 0.10013, 0.2):
        for seed in range(3):
            write(tmp_path, "adam", seed, SLOW, learning_rate=rate)
    for beta in (None, 1, "1", 1.0, [1], 1e-9):
        write(tmp_path, "adam", 0, SLOW, beta=beta)
    found = frames.read(tmp_path)
    assert found.runs.groupby("label")["hyperparameters"].nunique().max() == 1
    assert found.runs["label"].nunique() == found.runs["hyperparameters"].nunique() == 9
    assert "adam learning_rate=0.10011" in set(found.runs["label"])
    everything = speedups.speedups(trials.trials(found.frame), "adam learning_rate=0.2")
    assert len(everything)


def test_a_seed_that_appears_twice_counts_once(tmp_path):
    for seed in range(3):
        write(tmp_path, "adam", seed, SLOW)
        write(tmp_path, "fast", seed, FAST)
    path = write(tmp_path, "fast", 0, FAST)
    path.with_name("other.jsonl").write_text(path.read_text().replace(path.stem, "0" * 12))
    found = frames.read(tmp_path)
    assert len(found.runs) == 6
    assert "the same configuration and seed as" in found.errors[0].reason


def test_what_has_not_ended_has_no_end(tmp_path):
    """Three seeds that stopped at a lower KL are no better than three that ended."""
    for seed in range(3):
        write(tmp_path, "adam", seed, [4, 1, 0.3])
        path = write(tmp_path, "adam", seed, [4, 0.1, 0.1], learning_rate=0.2)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
        write(tmp_path, "sgd", seed, [4, 1, 0.4])
        write(tmp_path, "sgd", seed, [4, 0.5, 0.001], steps=400, status="failed")
        write(tmp_path, "adam", seed, [4, 0.5, 0.2], steps=400)
    ends = trials.trials(frames.load(tmp_path)[0])
    best = trials.best_per_optimizer(ends).set_index("optimizer")
    assert set(best.loc["adam", "status"]) == {"finished"}
    found = matched_quality.matched_quality(ends, "adam").set_index("horizon").loc[400]
    assert found["bound"] == "at most", "a failed trial has the KL of an untrained student"


def test_a_trial_lost_at_once_is_a_miss_in_seconds_too(tmp_path):
    for seed in range(5):
        write(tmp_path, "fast", seed, FAST)
        path = write(tmp_path, "adam", seed, SLOW, status="finished" if seed else "diverged")
        if not seed:
            header, first, *_, end = path.read_text().splitlines()
            path.write_text("\n".join([header, first, end]) + "\n")
    table = speedups.speedups(trials.trials(frames.load(tmp_path)[0]), "adam").set_index("axis")
    for axis in ("steps", "seconds"):
        assert table.loc[axis, ["n", "reached", "reached_over", "wins"]].tolist() == [5, 5, 4, 5]


def test_the_sentence_is_that_of_the_baseline_that_is_asked_for(tmp_path, run):
    for seed in range(3):
        for rate, curve in ((0.1, SLOW), (0.2, FAST)):
            write(tmp_path / "runs", "adam", seed, curve, learning_rate=rate)
        write(tmp_path / "runs", "sgd", seed, FAST)
    words = [tmp_path / "runs", "--out", tmp_path / "report", "--baseline"]
    _, stdout, _ = run(*words, "adam learning_rate=0.1")
    assert "sgd reaches validation_kl <= 0.5 in 0.33x" in stdout
    _, stdout, _ = run(*words, "adam")
    assert "sgd reaches validation_kl <= 0.5 in 1.00x" in stdout, "against the best"


def test_versions_of_a_source_have_one_name_where_they_do_not_meet(tmp_path, run):
    for seed in range(3):
        for steps, source in ((100, "aaaaaaaa"), (400, "bbbbbbbb")):
            write(tmp_path / "runs", "adam", seed, SLOW, steps, source=source)
            write(tmp_path / "runs", "fast", seed, FAST, steps)
    _, stdout, _ = run(tmp_path / "runs", "--out", tmp_path / "report")
    assert stdout.count("- fast reaches") == 2
    status, stdout, _ = run("--compare", tmp_path / "runs", tmp_path / "runs")
    assert status == 0
    ends = trials.trials(frames.load(tmp_path / "runs")[0])
    assert set(matched_quality.matched_quality(ends, "adam")["over"]) == {"adam"}
    for seed in range(3):  # now they meet
        write(tmp_path / "runs", "adam", seed, SLOW, 400, source="aaaaaaaa")
    status, stdout, _ = run("--compare", tmp_path / "runs", tmp_path / "runs")
    assert status == 0
    assert "adam on t, 400 steps, p: not compared" in stdout


def test_of_copies_the_one_that_ended_counts(tmp_path):
    path = write(tmp_path, "adam", 0, SLOW)
    cut = b"\n".join(path.read_bytes().split(b"\n")[:3]) + b"\n"
    (tmp_path / "t" / "zzz.jsonl").write_bytes(cut)
    (tmp_path / "t" / "aaa.jsonl").write_bytes(cut)
    found = frames.read(tmp_path)
    assert found.runs[["record", "status"]].to_numpy().tolist() == [[str(path), "finished"]]
    assert len(found.frame) == len(SLOW)
    assert len(found.errors) == 2


def test_the_sentence_is_the_numbers(tmp_path, run):
    for seed in range(5):
        write(tmp_path / "runs", "fast", seed, FAST)
        write(tmp_path / "runs", "adam", seed, SLOW if seed else NEVER)
        write(tmp_path / "runs", "lost", seed, NEVER)
    _, stdout, _ = run(tmp_path / "runs", "--out", tmp_path / "report")
    assert "- fast reaches validation_kl <= 0.5 in 0.31x [0.00, 0.49] of adam's steps, n = 5; " in stdout
    assert "; P(faster) > 0.999; seeds that reach it: fast 5, adam 4.\n" in stdout
    assert re.search(
        r"- lost never reaches .*: it needs at least .*, ∞\) of adam's steps, n = 5", stdout
    )
    assert "seeds that reach it: lost 0, adam 4.\n" in stdout


def test_every_figure_is_there_in_three_formats_and_as_a_table(tmp_path, run):
    for optimizer, level in (("adam", 1.0), ("fast", 0.5)):
        for steps in (100, 400):
            for seed in range(3):
                for rate in (0.1, 0.2, 0.4):
                    kl = [4, 2 * level, 50 * level * (1 + rate) / steps]
                    write(tmp_path / "runs", optimizer, seed, kl, steps, learning_rate=rate)
    out = tmp_path / "report"
    run(tmp_path / "runs", "--out", out)
    drawn = {path.stem for path in out.glob("*.png")}
    for kind in ("matched-quality", "speedups", "tuning", "sensitivity", "overfitting", "profile"):
        assert any(kind in name for name in drawn), kind
    for name in drawn:
        assert (out / f"{name}.svg").stat().st_size > 1000
        assert (out / f"{name}.pdf").stat().st_size > 1000
        table = f"{name.split('-validation_')[0]}-curves" if "-by-" in name else name
        assert len(pd.read_csv(out / f"{table}.csv"))
    page = (out / "index.html").read_text()
    assert page.count("How it is computed") > 8


def test_a_hostile_name_stays_a_name(tmp_path, run):
    name = "<script>alert(1)</script>"
    for seed in range(3):
        path = write(tmp_path / "runs", "plain", seed, FAST)
        edit(path, optimizer=name, task="a/../b|c")
        write(tmp_path / "runs", "adam", seed, SLOW)
    out = tmp_path / "report"
    status, stdout, _ = run(tmp_path / "runs", "--out", out)
    assert status == 0
    assert name not in stdout
    assert name not in (out / "index.html").read_text()
    assert {path.parent for path in out.rglob("*")} == {out}, "no name left the folder"


def test_warnings_are_given_where_they_are_due_and_nowhere_else(tmp_path):
    for seed in range(3):
        late = [4, 3, 2, 1, 0.6, 0.4]
        write(tmp_path, "adam", seed, late)
        write(tmp_path, "sgd", seed, late)
    assert warnings(tmp_path) == ""
    edit(write(tmp_path, "adam", 3, FAST), git={"commit": "abc", "dirty": True})
    assert re.search(r"Dirty git tree: 1 of 7 runs", warnings(tmp_path))
    assert (
        "Unpaired seeds: in t (p, 100 steps) the optimizers have different ones (adam 0-3; sgd 0-2)"
        in (warnings(tmp_path))
    )
    edit(write(tmp_path, "sgd", 3, FAST), device={"platform": "gpu", "host": "b"})
    assert "Mixed devices: the timed runs of t (p, 100 steps) are from 2" in warnings(tmp_path)
    assert "Unpaired" not in warnings(tmp_path)
    write(tmp_path, "sgd", 3, FAST, learning_rate=0.2)
    assert (
        "Different tuning budgets: configurations that are recorded here for t (p, 100 steps): adam 1"
        in (warnings(tmp_path))
    )
    edit(write(tmp_path, "adam", 5, FAST), task_fingerprint="g")
    assert "Mixed task fingerprints: t is there in 2 versions" in warnings(tmp_path)
    for seed in range(3):
        write(tmp_path, "early", seed, FAST)
    assert re.search(r"Target met before the schedule\'s end in t@f .*early at 25%", warnings(tmp_path))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nowhere"], "no records there"),
        ([], "give one folder"),
        (["runs", "--compare", "runs", "runs"], "give one folder"),
        (["runs", "--baseline", "adan"], "--baseline adan: not in these records; the nearest is 'adam'"),
        (["runs", "--out", "/proc/report"], "--out /proc/report: cannot be written"),
        (["--compare", "runs", "nowhere"], "nowhere: no records there"),
    ],
)
def test_bad_input_is_reported_in_one_line(tmp_path, run, monkeypatch, words, named):
    write(tmp_path / "runs", "adam", 0, SLOW)
    monkeypatch.chdir(tmp_path)
    status, _, stderr = run(*words)
    assert status == 2
    assert named in stderr
    assert stderr.count("\n") == 1


def test_a_change_is_reported_and_no_change_is_not(tmp_path, run):
    rng = np.random.default_rng(0)

    falling = [4 * 0.8**i for i in range(21)]

    def noisy(curve):
        return [kl * float(np.exp(0.02 * rng.normal())) for kl in curve]

    for seed in range(5):
        for side, faster in (("before", 1.0), ("after", 0.4)):
            write(tmp_path / side, "mine", seed, noisy([faster * kl for kl in falling]), source=side)
            write(tmp_path / side, "adam", seed, noisy(falling), source=side)
            write(tmp_path / side, "same", seed, SLOW)
            write(tmp_path / side, "default", seed, noisy(SLOW), source=side, beta=0.9 + len(side) / 100)
            write(tmp_path / side, f"only_{side}", seed, SLOW)
    status, stdout, _ = run("--compare", tmp_path / "before", tmp_path / "after")
    assert status == 0
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in stdout.splitlines() if "| " in line
    ]
    verdicts = {(row[1], row[2]): row[-1] for row in rows}
    assert verdicts["mine", "test KL at the end"] == "better"
    assert verdicts["mine", "steps to the target"] == "better"
    assert verdicts["adam", "test KL at the end"] == "no change seen"
    assert verdicts["same", "-"] == "the same run"
    assert (
        "default on t, 100 steps, p: compared although its hyperparameters changed, beta 0.96" in stdout
    )
    assert "only_before on t, 100 steps, p: before only" in stdout
    assert "only_after on t, 100 steps, p: after only" in stdout
    ratio = next(row[5] for row in rows if row[1:3] == ["mine", "test KL at the end"])
    assert 0.38 < float(ratio.split()[0]) < 0.42


def test_markdown_shows_names_as_they_are():
    assert markdown.escape("a|b <script> 1 < 2 [x](y)") == r"a\|b \<script> 1 < 2 [x]\(y)"
    table = pd.DataFrame({"a": ["x|y", 1.23456, np.nan], "b": ["3 [2, 4]", 0, "-"]})
    assert markdown.table(table).splitlines()[2:] == [
        r"| x\|y  | 3 [2, 4] |",
        "| 1.235 | 0        |",
        "| -     | -        |",
    ]


def test_a_report_of_many_records_is_small_and_reports_what_it_left_out(tmp_path):
    """A tenth of the bar of 2,000 records, which benchmarks/results/report_size.py measures."""
    report_size.write_records(tmp_path / "runs", 200, 200, workloads=1)
    out = tmp_path / "report"
    command = [sys.executable, "analysis/report.py", tmp_path / "runs", "--out", out]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    page = (out / "index.html").read_text()
    assert len(page) < 12e6
    measurements = pd.read_csv(out / "measurements.csv")
    records = list((tmp_path / "runs").rglob("*.jsonl"))
    assert measurements["run_id"].nunique() == len(records) == 200
    assert "Curves are thinned to at most" in page


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_intervals_cover_the_truth_and_equals_are_not_called_different(missing):
    """A thousand experiments of 5 and 10 seeds, noise of three kinds; all cases: coverage.py."""
    cases = [coverage.case(167, seeds, noise, missing) for seeds in (5, 10) for noise in coverage.NOISES]
    assert 0.93 <= np.mean([case["covers"] for case in cases]) <= 0.97
    assert np.mean([case["A/A called different"] for case in cases]) <= 0.05
    dropped = np.mean([case["dropped and bootstrapped covers"] for case in cases])
    assert dropped < 0.9, "the usual way covers less than it claims, or this test sees nothing"


def test_one_odd_record_does_not_take_the_report(tmp_path, run):
    """Of all that is odd here, whatever can be used is in the report, and the rest is named."""
    runs = tmp_path / "runs"
    for seed in range(3):
        write(runs, "adam", seed, SLOW)
        write(runs, "fast", seed, FAST)
    deep = "[" * 5000 + "]" * 5000
    for number, (row, text) in enumerate([(1, deep), (0, deep), (0, "[" * 600 + "]" * 600)]):
        path = write(runs, f"deep{number}", 0, FAST)
        lines = path.read_text().splitlines()
        lines[row] = f'{lines[row][:-1]}, "x": {text}}}'
        path.write_text("\n".join(lines) + "\n")
    for number, metric in enumerate(("a/../b", "m" * 300, "=cmd|' /C calc'!A0")):
        path = write(runs, f"metric{number}", 0, FAST)
        edit(path, task=f"u{number}")
        path.write_text(path.read_text().replace('"validation_kl"', json.dumps(metric)))
    edit(write(runs, "long", 0, FAST), task="t" * 400)
    edit(write(runs, "longer", 0, FAST), optimizer="L" * 3000)
    edit(write(runs, "control", 0, FAST), optimizer="\x1b[31mred\n\x07")
    edit(write(runs, "schema", 0, FAST), schema="\x1b[31m\n")
    failed = write(runs, "failed", 0, FAST, status="failed")
    failed.write_text(failed.read_text().replace('"kind": "end"', '"kind": "end", "reason": "\\u001b["'))
    path = write(runs, "bytes", 0, FAST)
    os.rename(path, os.fsencode(path.parent) + b"/\xff.jsonl")
    os.mkfifo(runs / "pipe.jsonl")
    (runs / "zero.jsonl").symlink_to("/dev/zero")
    out = tmp_path / "report"
    status, stdout, stderr = run(runs, "--out", out)
    assert status == 0
    assert "fast reaches" in stdout
    for text in (stdout, stderr, (out / "summary.md").read_text()):
        assert all(line.isprintable() for line in text.splitlines())
    assert len(stderr.splitlines()) == len(frames.read(runs).errors)
    assert stderr.count("not a file") == 2
    assert stderr.count("deep") >= 3
    rows = pd.read_csv(out / "trials.csv")
    assert {"adam", "fast", "L" * 3000, "bytes", "metric0"} <= set(rows["optimizer"])
    assert (out / "index.html").stat().st_size > 1e6
    assert max(len(path.name) for path in out.iterdir()) < 255


def test_a_folder_of_nothing_but_started_trials_makes_a_report_or_one_line(tmp_path, run):
    for seed in range(2):
        path = write(tmp_path / "runs", "adam", seed, SLOW)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:2]))
    status, _, stderr = run(tmp_path / "runs", "--out", tmp_path / "report")
    assert (status, stderr) == (0, "")
    assert (tmp_path / "report" / "index.html").exists()
    for path in (tmp_path / "runs").rglob("*.jsonl"):
        path.write_text(path.read_text().splitlines(keepends=True)[0])
    status, _, stderr = run(tmp_path / "runs", "--out", tmp_path / "other")
    assert status == 2
    assert "no records there" in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kilobytes", [1, 100, 1000])
def test_a_full_disk_leaves_the_earlier_report_and_is_one_line(tmp_path, kilobytes):
    for seed in range(3):
        write(tmp_path / "runs", "adam", seed, SLOW)
    out = tmp_path / "report"
    out.mkdir()
    (out / "index.html").write_text("the earlier one")
    limited = f"ulimit -f {kilobytes}; exec '{sys.executable}' analysis/report.py \"$@\""
    command = ["bash", "-c", limited, "report", tmp_path / "runs", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"--out {out}: cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (out / "index.html").read_text() == "the earlier one"
    assert list(out.iterdir()) == [out / "index.html"]


def test_no_text_in_a_table_is_a_formula(tmp_path):
    texts = [
        "=1+1",
        "+A1",
        "-x",
        "@SUM(A1)",
        "-1 |cmd",
        "plain",
        "-",
        "-0.5",
        "-1.5 [-2, 0.1]",
        "a\x1bb",
    ]
    table = pd.DataFrame({"=name": texts, "number": np.arange(-5.0, 5.0), "missing": [None] * 10})
    files.write_csv(table, tmp_path / "a.csv")
    read = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert [*read] == ["'=name", "number", "missing"]
    assert read["number"].tolist() == table["number"].tolist()
    expected = [f"'{text}" for text in texts[:5]] + ["plain", "-", "-0.5", "-1.5 [-2, 0.1]", r"a\x1bb"]
    assert read["'=name"].tolist() == expected


@pytest.mark.parametrize(
    "name", ["a", "a/b", "..", "", "x" * 1000, "\ud800", "é" * 300, "\n", "a" * 79 + "/"]
)
def test_names_of_files_are_short_and_differ(name):
    assert re.fullmatch(r"[\w.@+-]{0,100}", files.safe(name))
    assert files.safe(name) != files.safe(name + "/") != files.safe(name + "//")


def test_a_label_of_thousands_of_characters_is_drawn_at_once():
    begun = time.process_time()
    for text in ("x" * 3000, "word " * 3000, "中" * 3000):
        lines = axes.wrapped(text, 1.0).split("\n")
        assert all(axes.width(line) <= 1.05 for line in lines)
        assert sum(map(len, lines)) <= axes.LONGEST
    assert time.process_time() - begun < 5


def test_bad_options_are_one_line_and_status_2(command, tmp_path):
    status, stdout, stderr = command(report, "--nonsense")
    assert (status, stdout) == (2, "")
    assert stderr == "report.py: error: unrecognized arguments: --nonsense\n"
