"""Metrics of all sorts, from a record's header to the report: none is known to analysis by its name."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import figures, frames, report
from analysis.statistics import speedups, summary
from analysis.statistics.curves import curves
from analysis.statistics.trials import trials
from testbed import metrics
from tests.test_analysis import FAST, NEVER, SLOW, write

SCORE = {"score": {"label": "log score", "unit": "nats", "better": "max", "drawn": "linear"}}
DIAGNOSTICS = ("grad_norm", "sharpness", "optimizer_failed_roots")
STEPS = [0, 25, 50, 75, 100]


def rewrite(path, declared, target, **columns):
    """Gives a record other columns, a value for each measurement, and declares them."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"metrics": declared, "target": target}
    for i, row in enumerate(rows[1:-1]):
        own = {name: values[i] for name, values in columns.items() if i < len(values)}
        rows[i + 1] = {name: row[name] for name in ("kind", "step", "train_seconds")} | own
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_scores(folder, optimizer, seed, scores, status="finished", target=None):
    """A trial with a score that counts up from below zero, and with diagnostics; no KL, no accuracy."""
    target = target or {"metric": "validation_score", "value": -1.0, "mode": "max"}
    path = write(folder, optimizer, seed, [1.0] * len(scores), status=status)
    rewrite(
        path,
        SCORE,
        target,
        **{f"{part}_score": scores for part in ("train", "validation", "test")},
        grad_norm=[4.0, None, 1.0, None, 0.5],  # measured less often
        sharpness=[1.0 + seed, 2.0, -3.0, 1.0, 0.5],
        optimizer_failed_roots=[0, 0, 1, 2, 3],
    )


UP, LATE, LOST = (
    [-4.0, -2.0, -0.5, 0.5, 1.0],
    [-4.0, -3.0, -2.0, -0.8, 0.2],
    [-4.0, -3.5, None, None, None],
)


@pytest.fixture
def scored(tmp_path):
    for seed in range(3):
        write_scores(tmp_path / "runs", "adam", seed, LATE)
        write_scores(tmp_path / "runs", "fast", seed, UP)
        lost = seed != 1
        write_scores(
            tmp_path / "runs", "sgd", seed, LOST if lost else UP, "diverged" if lost else "finished"
        )
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("column", "axis", "worst"),
    [
        ("validation_kl", "held-out KL (nats)", np.inf),
        ("train_loss", "training loss", np.inf),
        ("test_accuracy", "test error", -np.inf),
        ("validation_central_agreement", "held-out central disagreement", -np.inf),
        ("grad_norm", "gradient norm", np.nan),
        ("optimizer_failed_roots", "optimizer: failed roots", np.nan),
        ("validation_score", "held-out log score (nats)", -np.inf),
        ("test_share", "1 - test a share", -np.inf),
        ("kl_of_my_own", "kl_of_my_own", np.nan),
    ],
)
def test_a_columns_name_determines_its_metric(column, axis, worst):
    share = {"share": {"label": "a share", "better": "max", "drawn": "complement"}}
    metric = metrics.find(column, SCORE | share)
    assert (metric.name, metric.axis) == (column, axis)
    np.testing.assert_equal(metric.worst, worst)


def test_what_a_header_declares_takes_precedence():
    assert metrics.find("test_kl", {"kl": {"label": "other"}}).axis == "test other"
    assert metrics.find("test_kl", {"kl": {"label": "a"}, "test_kl": {"label": "b"}}).axis == "b"


@pytest.mark.parametrize(
    ("declared", "fault"),
    [
        ([], "its metrics are not an object"),
        ({"a": 1}, "its metric a is not an object of texts"),
        ({"a": {"label": 1}}, "its metric a is not an object of texts"),
        ({"a": {"colour": "red"}}, "its metric a has a field colour; known: label, unit, better, drawn"),
        ({"a": {"name": "b"}}, "its metric a has a field name"),
        ({"a": {"better": "up"}}, "its metric a has better 'up'; allowed: min, max, none"),
        ({"a": {"drawn": "red"}}, "its metric a has drawn 'red'; allowed: log, complement, linear"),
    ],
)
def test_what_a_header_declares_wrongly_is_an_error_and_not_fatal(tmp_path, declared, fault):
    assert metrics.check(declared).startswith(fault)
    rewrite(write(tmp_path, "adam", 0, FAST), declared, {"metric": "a", "value": 1, "mode": "max"}, a=UP)
    found = frames.read(tmp_path)
    assert [error.reason.startswith(fault) for error in found.errors] == [True]
    assert frames.metric(found.frame, "a").better == "max", "as in its target"


def test_headers_that_disagree_are_an_error(tmp_path):
    write_scores(tmp_path, "adam", 0, UP)
    path = write(tmp_path, "sgd", 0, FAST)
    other = {"score": SCORE["score"] | {"better": "min"}}
    target = {"metric": "validation_score", "value": -1.0, "mode": "max"}
    rewrite(path, other, target, validation_score=UP)
    (error,) = frames.read(tmp_path).errors
    assert error.reason == "its metric score is not declared as in other records"


def test_names_that_quartiles_need_are_left_out(tmp_path):
    target = {"metric": "validation_kl", "value": 0.5, "mode": "min"}
    rewrite(
        write(tmp_path, "adam", 0, FAST),
        {},
        target,
        validation_kl=FAST,
        norm=UP,
        norm_low=UP,
        n=UP,
        trial=UP,
    )
    found = frames.read(tmp_path)
    assert [error.reason.split()[6] for error in found.errors] == ["norm_low:", "n:"]
    table = curves(found.frame)
    assert table["norm"].tolist() == table["trial"].tolist() == UP


def test_a_diverged_trial_is_the_worst_where_a_direction_is_better_else_absent(scored):
    frame, errors = frames.load(scored)
    assert errors == []
    table = curves(frame)
    sgd = table[table["optimizer"] == "sgd"].set_index("step")
    assert sgd["n"].tolist() == [3] * 5
    assert sgd["validation_score"].tolist() == [-4, -3.5, *[-np.inf] * 3]
    assert sgd["validation_score_high"].tolist()[:2] == [-4, -2.75]
    assert sgd["sharpness"].tolist() == [2, 2, -3, 1, 0.5], "of the one that is left, at the end"
    assert sgd["grad_norm"].isna().tolist() == [False, True, False, True, False]
    assert "validation_accuracy" not in table
    assert table["validation_kl"].isna().all(), "no trial is the worst at what none has measured"
    ends = trials(frame)
    assert np.isinf(ends.loc[ends["status"] == "diverged", "score"]).all()


def test_of_tasks_with_other_metrics_none_counts_as_lost_in_the_others(tmp_path):
    write_scores(tmp_path, "adam", 0, LOST, "diverged")
    path = write(tmp_path, "sgd", 0, [4, 3, None], status="diverged")
    path.write_text(path.read_text().replace('"task": "t"', '"task": "u"'))
    table = curves(frames.load(tmp_path)[0]).set_index("task")
    assert table.loc["t", "validation_kl"].isna().all()
    assert table.loc["u", "validation_score"].isna().all()
    assert table.loc["u", "validation_kl"].iloc[-1] == np.inf
    assert table.loc["t", "validation_score"].iloc[-1] == -np.inf


def test_records_of_other_metrics_make_a_report(scored, tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    text = report.write(frames.read(scored), out, "adam")
    assert "fast reaches validation_score >= -1 in 0.67x" in text
    assert "sgd never reaches" in text or "sgd reaches" in text
    assert "test_score" in text
    assert "accuracy" not in text
    page = (out / "index.html").read_text()
    assert page.count(">Diagnostics</h") == 1
    for name in ("validation_score", *DIAGNOSTICS):
        assert (out / f"t-100-{name}-by-step.svg").stat().st_size > 3000
        assert f'<option value="{name}"' in page
    assert '<option value="validation_score" data-linear>held-out log score (nats)</option>' in page
    assert '<option value="grad_norm">gradient norm</option>' in page
    assert {*DIAGNOSTICS, "validation_score"} < {*pd.read_csv(out / "t-100-curves.csv")}
    assert not list(out.glob("*overfitting*")), "there is no KL to audit"
    assert not list(out.glob("*accuracy*"))


def test_a_report_of_the_usual_metrics_has_no_diagnostics(tmp_path):
    write(tmp_path / "runs", "adam", 0, FAST)
    report.write(frames.read(tmp_path / "runs"), tmp_path, "adam")
    assert "Diagnostics" not in (tmp_path / "index.html").read_text()


def drawn(figure):
    """The y-axis's scale, and the y-values of the lines with many points."""
    (axes,) = figure.axes
    return axes.get_yscale(), [
        line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata()) > 2
    ]


def test_metrics_that_may_be_negative_or_count_up_are_drawn_unchanged(scored):
    frame, _ = frames.load(scored)
    scale, lines = drawn(figures.time_to_accuracy(frame))
    assert scale == "linear"
    assert [-2.0, -0.5, 0.5, 1.0] in lines, "all but step 0"
    texts = [text.get_text() for text in figures.time_to_accuracy(frame).texts]
    assert "held-out log score (nats)" in texts
    assert "sgd (diverged)" in texts
    scale, lines = drawn(figures.time_to_accuracy(frame, "optimizer_failed_roots"))
    assert (scale, lines) == ("linear", [[0.0, 1.0, 2.0, 3.0]] * 3)
    scale, lines = drawn(figures.time_to_accuracy(frame, "sharpness", "train_seconds"))
    assert scale == "linear"
    scale, _ = drawn(figures.time_to_accuracy(frame, "grad_norm"))
    assert scale == "log"


@pytest.mark.parametrize(
    ("metric", "value", "mode", "steps"),
    [
        ("validation_score", -1.0, "max", 50),
        ("sharpness", -1.0, "min", 50),
        ("optimizer_failed_roots", 2, "max", 75),
    ],
)
def test_a_target_may_be_in_any_metric(tmp_path, metric, value, mode, steps):
    for seed in range(3):
        for name in ("adam", "fast"):
            target = {"metric": metric, "value": value, "mode": mode}
            write_scores(tmp_path / "runs", name, seed, UP, target=target)
    write_scores(tmp_path / "runs", "sgd", 0, LOST, "diverged", target)
    frame, errors = frames.load(tmp_path / "runs")
    assert errors == []
    ends = trials(frame)
    assert ends.loc[ends["optimizer"] != "sgd", "steps_to_target"].tolist() == [steps] * 6
    assert speedups.speedups(ends, "adam").set_index("label").loc["fast", "speedup"].iloc[0] == 1
    lost = curves(frame).query("optimizer == 'sgd'")[metric].iloc[-1]
    assert lost == (np.inf if mode == "min" else -np.inf), "its target defines which direction is better"
    assert metric in summary.summary(ends)
    report.write(frames.read(tmp_path / "runs"), tmp_path, "adam")
    assert (tmp_path / f"t-100-{metric}-by-step.svg").stat().st_size > 3000


NOTEBOOK = """
from analysis import figures, frames
frame, errors = frames.load("runs")
figures.time_to_accuracy(frame)
figures.time_to_accuracy(frame, "test_accuracy", "train_seconds")
figures.speedups(frame, baseline="adam")
"""


def test_a_comparison_in_a_notebook_takes_a_few_lines(tmp_path, monkeypatch):
    assert NOTEBOOK.count("\n") <= 10
    for seed in range(3):
        write(tmp_path / "runs", "adam", seed, SLOW)
        write(tmp_path / "runs", "fast", seed, FAST)
    monkeypatch.chdir(tmp_path)
    cells: dict[str, object] = {}
    exec(NOTEBOOK, cells)  # noqa: S102 (our own)
    shown = figures.overfitting(cells["frame"])._repr_png_()
    assert shown.startswith(b"\x89PNG"), "a notebook shows what a cell ends with"
    assert not [*Path().glob("*.png")], "nothing is written"


def test_curves_of_several_workloads_are_refused_in_one_line(tmp_path):
    for steps in (100, 200):
        write(tmp_path, "adam", 0, NEVER, steps)
    frame, _ = frames.load(tmp_path)
    with pytest.raises(
        ValueError, match=r"curves of t at 100, t at 200: give those of one task"
    ) as caught:
        figures.time_to_accuracy(frame)
    assert "\n" not in str(caught.value)
    figures.time_to_accuracy(frame[frame["total_steps"] == 100])
    with pytest.raises(ValueError, match="no measurements"):
        figures.time_to_accuracy(frames.load(str(tmp_path / "nowhere"))[0])
    with pytest.raises(ValueError, match="baseline 'sgd' is not in the table; it has adam"):
        figures.speedups(frame, baseline="sgd")
