"""Records as one tidy pandas frame: a row per measurement, with what identifies its trial."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from testbed import metrics, records
from testbed.metrics import Metric
from testbed.records import ReadError, Record

# What makes two trials the same but for the seeds of first weights and of lessons. Students that have
# lessons of their own and those that share some are apart: sweeps tune with the former only.
CONFIGURATION = [
    "task",
    "task_fingerprint",
    "protocol",
    "optimizer",
    "optimizer_sha256",
    "hyperparameters",
    "total_steps",
    "start",
    "sharing",
]
# Fields of a header without which a record is of no use.
HEADER = {
    "run_id": str,
    "task": str,
    "optimizer": str,
    "seed": int,
    "total_steps": int,
    "hyperparameters": dict,
    "target": dict,
}
IDENTITY = [
    "run_id",
    *CONFIGURATION,
    "optimizer_name",
    "version",
    "seed",
    "lessons",
    "batch_size",
    "timed",
    "host",
    "commit",
    "status",
    "target_metric",
    "target_value",
    "target_mode",
    "decides",
]
# Columns that statistics add; no measurement may be called so.
DERIVED = [
    "label",
    *(f"{axis}_{what}" for axis in ("steps", "seconds") for what in ("to_target", "watched", "cadence")),
    "score",
    "final",
    "n",  # of `curves.curves`
]
RESERVED = {"kind", *IDENTITY, *DERIVED}  # what no measurement may be called
DEEPEST = 50  # more than any of ours, and less than Python's limit
DECIDES = "test_kl"  # at a horizon's end, where a header does not say what else
DECLARED = "metrics"  # in the `attrs` of a frame, and of what is made of it
STATUSES = ("finished", "diverged", "failed")  # of an end
# Columns that every frame has, measured or not.
EXPECTED = ["epoch", "train_seconds", "train_kl", "validation_kl", "test_kl"]
CLOCKS = ["step", "epoch", "train_seconds"]


class Folder(NamedTuple):
    """What the records below a folder say."""

    frame: pd.DataFrame  # a row per measurement, see `load`
    runs: pd.DataFrame  # a row per trial: what identifies it, where it ran, how it ended, its ledger
    errors: list[ReadError]  # what could not be used, and why


def load(folder: str | Path) -> tuple[pd.DataFrame, list[ReadError]]:
    """All measurements below a folder, and what could not be read.

    One row per measurement, sorted by trial and step. Columns: run_id, task (with a piece of its
    fingerprint where there are several of that name), task_fingerprint, protocol, optimizer (with its
    version, where there are several), optimizer_name, version (a piece of its checksum, or nothing),
    optimizer_sha256, hyperparameters (JSON text), start (what students started from, where
    it is a checkpoint), sharing ("own" lessons, or "shared"), lessons (their seed, of those that
    share some: they are a crowd), seed, total_steps, batch_size, timed (it was alone, and
    its process was not stopped as it trained: its seconds compare),
    host, commit, status ("unfinished" without an end), target_metric, target_value,
    target_mode, decides (the metric whose value at the horizon's end compares optimizers, lower is
    better); label (a short name of the configuration); step, epoch, train_seconds (NaN where
    trials are not timed), train_kl, validation_kl, test_kl, and all else that was measured
    (`metrics_of`). Null scores are NaN. What headers declare of their metrics is in the frame's `attrs`,
    where `metric` finds it.
    """
    frame, _, errors = read(folder)
    return frame, errors


def read(folder: str | Path) -> Folder:
    """All that is recorded below a folder.

    A trial whose header lacks what identifies it, without a measurement, or of which another file has
    more, is among the errors and left out; nothing that a record can hold is fatal.
    """
    rows, scores, errors = [], [], []
    declared: dict[str, Any] = {}
    for path in records.paths(Path(folder)):
        record = records.read(path)
        errors += record.errors
        if not record.header:
            continue
        if fault := _fault(record):
            errors.append(ReadError(path, 0, fault))
            continue
        measured, mistaken = _scores(record)
        decides, misled = _decides(record, measured)
        errors += [*mistaken, *misled, *_declare(record, declared)]
        if measured.empty:
            errors.append(ReadError(path, 0, "none of its measurements has a step between 0 and 2^53"))
            continue
        run = _run(record) | {"decides": decides}
        if not run["timed"]:
            measured = measured.drop(columns="train_seconds", errors="ignore")
        rows.append(run | {"measurements": len(measured), "steps": measured["step"].iloc[-1]})
        scores.append(measured)
    if not rows:
        return Folder(pd.DataFrame(), pd.DataFrame(), errors)
    runs, copies = _without_copies(_with_versions(_with_crowds(pd.DataFrame(rows))))
    runs = runs.assign(label=labels(runs))
    frame = _frame(runs, [scores[i] for i in runs.index])
    frame.attrs |= {DECLARED: declared} if declared else {}
    return Folder(frame, runs.reset_index(drop=True), errors + copies)


def _fault(record: Record) -> str | None:
    """What keeps a record with a header from being used."""
    header = record.header
    for name, kind in HEADER.items():
        if not isinstance(header.get(name), kind) or isinstance(header.get(name), bool):
            return f"its header has no {name}, or one of another kind"
    if not (0 < header["total_steps"] < 2**53 and abs(header["seed"]) < 2**53):
        return "its total_steps or its seed is not a number of steps, or not a seed"
    target = header["target"]
    if (
        not isinstance(target.get("metric"), str)
        or np.isnan(number(target.get("value")))
        or target.get("mode") not in ("min", "max")
    ):
        return "its header's target is not a metric, a value and a mode (min or max)"
    if not record.measurements:
        return "it holds a header only: no measurement was made"
    if _is_deep([header, record.measurements, record.end]):
        return f"it is nested more than {DEEPEST} deep"
    measured = set().union(*record.measurements)
    if target["metric"] not in {name for name in measured if not _refused(name, measured)}:
        return f"its target is {target['metric']}, which is not measured"
    try:
        json.dumps([header, record.end, sorted(measured)], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "it holds a text that is not Unicode"
    return None


def _decides(record: Record, measured: pd.DataFrame) -> tuple[str, list[ReadError]]:
    """The metric that compares optimizers at the end; what is wrong with the one in the header."""
    named = record.header.get("decides", DECIDES)
    of_header = record.header.get("metrics", {})
    declared = {} if metrics.check(of_header) else of_header
    if not isinstance(named, str) or (named != DECIDES and named not in measured):
        fault = "is not measured"
    elif metrics.find(named, declared).better == "max":
        fault = "is better when it is higher"
    else:
        return named, []
    reason = f"its deciding metric {str(named)[:40]!r} {fault}: {DECIDES} decides instead"
    return DECIDES, [ReadError(record.path, 0, reason)]


def _is_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than DEEPEST deep."""
    level = [value]
    for _ in range(DEEPEST + 1):
        items = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [item for of in items for item in of]
    return bool(level)


def _scores(record: Record) -> tuple[pd.DataFrame, list[ReadError]]:
    """The measurements' numbers, by step; of a step that was measured twice, the last."""
    measured = {int(row["step"]): row for row in record.measurements if 0 <= row["step"] < 2**53}
    rows = [measured[step] for step in sorted(measured)]
    columns: dict[str, Any] = {"step": np.array(sorted(measured), np.int64)}
    errors = []
    names = dict.fromkeys(name for row in rows for name in row if name not in ("kind", "step"))
    for name in names:
        if _refused(name, names):
            errors.append(ReadError(record.path, 0, f"a measurement may not be called {name}: left out"))
            continue
        values = [row.get(name) for row in rows]
        columns[name] = np.array([number(value) for value in values])
        wrong = [v for v in values if v is not None and np.isnan(number(v))]
        if wrong:
            reason = f"{name} is {str(wrong[0])[:40]!r}, not a number: {len(wrong)} of them left out"
            errors.append(ReadError(record.path, 0, reason))
    return pd.DataFrame(columns), errors


def _refused(name: str, measured: Collection[str]) -> bool:
    """Whether a measurement may not be called so: x_low and x_high are quartiles of x."""
    return name in RESERVED or ((of := re.sub("_(low|high)$", "", name)) != name and of in measured)


def number(value: Any) -> float:
    """A JSON number; NaN for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return np.nan
    try:
        return float(value) if np.isfinite(float(value)) else np.nan
    except OverflowError:
        return np.nan


def _part(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A JSON object inside another; empty for all else."""
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def _declare(record: Record, declared: dict[str, Any]) -> Iterator[ReadError]:
    """Adds what a header declares of its metrics to what others do; yields what cannot be used of it.

    A target declares which way its metric is better, where nothing else does.
    """
    of_header = record.header.get("metrics", {})
    if fault := metrics.check(of_header):
        yield ReadError(record.path, 0, f"{fault}: its metrics are drawn as plain scalars")
        of_header = {}
    target = record.header["target"]
    aim = metrics.find(target["metric"], declared | of_header)
    if aim.better == "none":
        fields = aim._replace(better=target["mode"])._asdict()
        of_header = of_header | {fields.pop("name"): fields}
    for name, fields in of_header.items():
        if declared.setdefault(name, fields) != fields:
            yield ReadError(record.path, 0, f"its metric {name} is not declared as in other records")


def metrics_of(frame: pd.DataFrame) -> list[str]:
    """The columns of a frame of measurements that hold what was measured."""
    known = {*RESERVED, *CLOCKS}
    return [str(name) for name in frame.select_dtypes("number") if name not in known]


def metric(table: pd.DataFrame, column: str) -> Metric:
    """What is known of a column: as `testbed.metrics` has it, or as the headers of the records do."""
    return metrics.find(column, table.attrs.get(DECLARED))


def with_metrics(table: pd.DataFrame, source: pd.DataFrame) -> pd.DataFrame:
    """The table, with what headers declare of the source's metrics: pandas does not always keep it."""
    if DECLARED in source.attrs:
        table.attrs[DECLARED] = source.attrs[DECLARED]
    return table


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _frame(runs: pd.DataFrame, scores: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """A row per measurement, with what identifies its trial."""
    measured = pd.concat(scores, ignore_index=True)
    absent = [name for name in EXPECTED if name not in measured]
    measured = measured.reindex(columns=[*measured, *absent])
    counts = [len(of_run) for of_run in scores]
    identity = runs[[*IDENTITY, "label"]]
    frame = pd.concat(
        [identity.loc[identity.index.repeat(counts)].reset_index(drop=True), measured], axis=1
    )
    return frame.sort_values(["run_id", "step"], ignore_index=True)


def _without_copies(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[ReadError]]:
    """Of each run, and each student of a configuration, one record: an ended one, then the longest."""
    order = runs.assign(ended=runs["status"] != "unfinished")
    order = order.sort_values(["ended", "measurements"], ascending=False, kind="stable")
    errors = []
    for columns, what in (
        (["run_id"], "run"),
        ([*CONFIGURATION, "lessons", "seed"], "configuration and seed"),
    ):
        used = order.groupby(columns, sort=False)["record"].transform("first")
        for record, first in zip(order["record"], used, strict=True):
            if record != first:
                reason = f"the same {what} as {first}, which is used instead"
                errors.append(ReadError(Path(record), 0, reason))
        order = order[order["record"] == used]
    return runs.loc[sorted(order.index)], errors


def _run(record: Record) -> dict[str, Any]:
    header, end = record.header, record.end or {}
    device, git, ledger = _part(header, "device"), _part(header, "git"), _part(end, "ledger")
    paused = number(ledger.get("paused_s")) > 0
    status = end.get("status")
    where = (device.get(name) for name in ("platform", "kind", "processor", "used"))
    return {
        **{name: header[name] for name in ("run_id", "task", "optimizer", "seed", "total_steps")},
        **{
            name: _text(header.get(name))
            for name in ("task_fingerprint", "protocol", "optimizer_sha256")
        },
        "batch_size": number(header.get("batch_size")),
        "timed": header.get("timed", True) is True and not paused,
        "hyperparameters": json.dumps(header["hyperparameters"], sort_keys=True),
        "start": _start(_part(header, "init")),
        "lessons": _text(header.get("lesson_seed")),
        "host": _text(device.get("host")),
        "commit": _text(git.get("commit")),
        "status": status if status in STATUSES else "unfinished",
        "target_metric": header["target"]["metric"],
        "target_value": float(header["target"]["value"]),
        "target_mode": header["target"]["mode"],
        # What follows is not repeated in each measurement's row.
        "record": str(record.path).encode(errors="backslashreplace").decode(),  # names may be no UTF-8
        "device": " ".join(_text(value) for value in where if value),
        "dirty": git.get("dirty") is True,
        "versions": json.dumps(_part(header, "versions"), sort_keys=True),
        "precision": json.dumps(_part(header, "precision"), sort_keys=True),
        "command": _text(header.get("command")),
        "started_at": _text(header.get("started_at")),
        "resumed": bool(end.get("resumed")),
        "paused": paused,
        "reason": _text(end.get("reason")),
        **{f"ledger_{name}": number(seconds) for name, seconds in ledger.items()},
        **{f"count_{name}": number(count) for name, count in _part(end, "counts").items()},
    }


def _start(init: Mapping[str, Any]) -> str:
    """What students started from; nothing for random weights."""
    if not init:
        return ""
    return f"init={_text(init.get('sha256'))[:6]}" + (", fresh head" if init.get("fresh_head") else "")


def labels(frame: pd.DataFrame) -> pd.Series:
    """A name for each row's configuration, no longer than needed to differ from the others of its task.

    The optimizer (with a piece of its checksum where there are several of that name); the protocol where
    there are several; those hyperparameters in which the configurations of one optimizer at one horizon
    differ; the checkpoint that students started from; whether they share lessons, where only some do;
    and where all that is not enough, a piece of a checksum. Seeds, of first weights and of lessons, are
    no part of a configuration.
    """
    several_protocols = frame["protocol"].nunique() > 1
    parts = frame["hyperparameters"].copy()
    for _, group in frame.groupby(["task", "optimizer", "total_steps"], dropna=False):
        parts[group.index] = group["hyperparameters"].map(
            _differences(list(group["hyperparameters"].unique()))
        )
    parts = (parts + " " + frame["start"]).str.strip()
    if frame["sharing"].nunique() > 1:
        parts = (parts + " lessons=" + frame["sharing"]).str.strip()
    if several_protocols:
        parts = (frame["protocol"] + " " + parts).str.strip()
    if frame["optimizer"].nunique() > 1 or not several_protocols:
        parts = (frame["optimizer"] + " " + parts).str.strip()
    whole = frame[CONFIGURATION].astype(str).agg("\n".join, axis=1)
    ambiguous = whole.groupby([frame["task"], frame["total_steps"], parts]).transform("nunique") > 1
    pieces = whole[ambiguous].map(lambda text: "#" + hashlib.sha256(text.encode()).hexdigest()[:4])
    return parts.where(~ambiguous, parts + " " + pieces)


def _differences(configurations: Sequence[str]) -> dict[str, str]:
    """Hyperparameters (JSON text) -> those that are not the same in all configurations, as text."""
    values = {text: json.loads(text) for text in configurations}
    shown: dict[str, dict[str, str]] = {text: {} for text in values}
    for name in sorted({name for hp in values.values() for name in hp}):
        exact = {text: json.dumps(hp[name]) for text, hp in values.items() if name in hp}
        if len(exact) == len(values) and len(set(exact.values())) == 1:
            continue
        short = {text: _short(values[text][name]) for text in exact}
        texts = short if len(set(short.values())) == len(set(exact.values())) else exact
        for text in exact:
            shown[text][name] = texts[text]
    return {
        text: " ".join(f"{name}={value}" for name, value in of.items()) for text, of in shown.items()
    }


def _with_crowds(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with `sharing`; a student of a crowd may be the one whose own seed is that of its lessons.

    Its header names no seed of lessons, as it is the trial that has these in any case.
    """
    same = [name for name in CONFIGURATION if name != "sharing"]
    crowds = {*runs.loc[runs["lessons"] != "", [*same, "lessons"]].itertuples(index=False, name=None)}
    seeds = runs["seed"].astype(str)
    own = runs[same].assign(lessons=seeds).itertuples(index=False, name=None)
    in_crowd = np.array([key in crowds for key in own], bool)
    lessons = runs["lessons"].mask(in_crowd & (runs["lessons"] == ""), seeds)
    return runs.assign(lessons=lessons, sharing=np.where(lessons == "", "own", "shared"))


def _with_versions(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with the names that the records have beside those used here, which differ by version."""
    task_version = _versions(runs["task"], runs["task_fingerprint"])
    version = _versions(runs["optimizer"], runs["optimizer_sha256"])
    return runs.assign(
        task_name=runs["task"],
        optimizer_name=runs["optimizer"],
        version=version,
        task=runs["task"].where(task_version == "", runs["task"] + "@" + task_version),
        optimizer=runs["optimizer"].where(version == "", runs["optimizer"] + "@" + version),
    )


def _versions(names: pd.Series, checksums: pd.Series) -> pd.Series:
    """A piece of each checksum, where one name has several."""
    several = checksums.groupby(names).transform("nunique") > 1
    return checksums.str[:6].where(several, "")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
