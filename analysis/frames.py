"""Records as one tidy pandas frame: a row per measurement, with what identifies its trial."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from testbed import records
from testbed.records import Record, Trouble

# What makes two trials the same but for the seed.
CONFIGURATION = [
    "task",
    "task_fingerprint",
    "protocol",
    "optimizer",
    "optimizer_sha256",
    "hyperparameters",
    "total_steps",
    "start",
    "lessons",
]


def load(folder: Path) -> tuple[pd.DataFrame, list[Trouble]]:
    """All measurements below a folder, and the lines that could not be read.

    Columns: run_id, task, task_fingerprint, protocol, optimizer, optimizer_sha256, hyperparameters
    (JSON text), start, lessons (their seed; "" where it is the student's), seed, total_steps,
    batch_size, timed, host, commit, status (`unfinished` where a record has no end), target_metric,
    target_value, target_mode, label, and those of the measurements: step, epoch, train_seconds (NaN
    where trials are not timed), train_loss, train_kl, validation_kl, ... Null scores are NaN.
    """
    found = records.read_folder(folder)
    troubles = [trouble for record in found for trouble in record.troubles]
    rows = [
        _trial(record) | {k: v for k, v in row.items() if k != "kind"}
        for record in found
        if record.header
        for row in record.measurements
    ]
    frame = pd.DataFrame(rows)
    if not frame.empty:
        scores = sorted(
            {name for record in found for row in record.measurements for name in row} - {"kind"}
        )
        frame = frame.reindex(columns=[*frame, *({"train_seconds"} - {*frame})])  # none is timed
        frame[scores] = frame[scores].apply(pd.to_numeric)  # a column of nulls alone is of objects
        duplicated = frame.duplicated(["run_id", "step"], keep="last")
        frame = frame[~duplicated].sort_values(["run_id", "step"], ignore_index=True)
        frame["task"] = _versions(frame["task"], frame["task_fingerprint"])
        frame["label"] = labels(frame)
    return frame, troubles


def _trial(record: Record) -> dict[str, Any]:
    header = record.header
    plain = (
        "run_id",
        "task",
        "task_fingerprint",
        "protocol",
        "optimizer",
        "optimizer_sha256",
        "seed",
        "total_steps",
        "batch_size",
        "timed",
    )
    return {name: header.get(name) for name in plain} | {
        "hyperparameters": json.dumps(header.get("hyperparameters", {}), sort_keys=True),
        "start": _start(header.get("init")),
        "lessons": str(header.get("lesson_seed", "")),
        "host": (header.get("device") or {}).get("host"),
        "commit": (header.get("git") or {}).get("commit"),
        "status": record.end["status"] if record.end else "unfinished",
        **{f"target_{name}": value for name, value in (header.get("target") or {}).items()},
    }


def _start(init: dict[str, Any] | None) -> str:
    """What students started from; nothing for random weights."""
    if not init:
        return ""
    return f"init={init['sha256'][:6]}" + (", fresh head" if init["fresh_head"] else "")


def labels(frame: pd.DataFrame) -> pd.Series:
    """A name for each row's configuration, no longer than tells it from the others of its task.

    The optimizer, with a piece of its checksum where there are several of that name; the protocol where
    there are several; those hyperparameters in which the configurations of one optimizer at one horizon
    differ; the checkpoint that students started from; and the seed of their lessons, where it is not
    the same for all.
    """
    optimizer = _versions(frame["optimizer"], frame["optimizer_sha256"])
    several_protocols = frame["protocol"].nunique() > 1
    parts = frame["hyperparameters"].copy()
    for _, group in frame.groupby(["task", optimizer, "total_steps"], dropna=False):
        parts[group.index] = group["hyperparameters"].map(
            _differences(list(group["hyperparameters"].unique()))
        )
    parts = (parts + " " + frame["start"]).str.strip()
    if frame["lessons"].nunique() > 1:
        parts = (parts + " lessons=" + frame["lessons"].replace("", "own")).str.strip()
    if several_protocols:
        parts = (frame["protocol"] + " " + parts).str.strip()
    if optimizer.nunique() > 1 or not several_protocols:
        parts = (optimizer + " " + parts).str.strip()
    return parts


def _differences(configurations: Sequence[str]) -> dict[str, str]:
    """Hyperparameters (JSON text) -> those that are not the same in all configurations, as text."""
    values = {text: json.loads(text) for text in configurations}
    names = sorted({name for hp in values.values() for name in hp})
    differing = [n for n in names if len({str(hp.get(n)) for hp in values.values()}) > 1]
    return {
        text: " ".join(f"{name}={_short(hp[name])}" for name in differing if name in hp)
        for text, hp in values.items()
    }


def _versions(names: pd.Series, checksums: pd.Series) -> pd.Series:
    """Names, with a piece of the checksum where one name has several."""
    several = checksums.groupby(names).transform("nunique") > 1
    return names.where(~several, names + "@" + checksums.fillna("").str[:6])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
