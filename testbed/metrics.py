"""Metrics as data: each one's name, unit, better direction, and how it is drawn.

A record's measurement has columns `<part>_<name>`, where part is one of PARTS and name one of METRICS,
or the name alone (a diagnostic, such as `grad_norm`). Standard library only: analysis reads this module
without jax.

A new metric is a function that scores it (testbed/problem/scores.py) and a row here, or in the
header of a task's records: `"metrics": {"bits": {"label": "bits", "better": "min", "drawn": "log"}}`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

Better = Literal["min", "max", "none"]
Drawn = Literal["log", "complement", "linear"]
PARTS = {"validation": "held-out", "test": "test", "train": "training"}


class Metric(NamedTuple):
    """What analysis knows about a column.

    A metric that has a direction (`better`) is expected in every measurement of a trial; one without may
    be measured less often.
    """

    name: str  # of the metric's column
    label: str  # human-readable, such as "held-out KL"
    unit: str = ""
    better: Better = "none"
    drawn: Drawn = "linear"  # log; complement: a share in [0, 1], drawn as 1 - x on a log axis; linear
    complement: str = ""  # the label of 1 - x, if that is drawn

    @property
    def worst(self) -> float:
        """The value of a diverged trial: infinitely bad, or NaN if neither direction is better."""
        return {"min": math.inf, "max": -math.inf, "none": math.nan}[self.better]

    @property
    def axis(self) -> str:
        """The label of its axis, such as "held-out KL (nats)" or "test error"."""
        if self.drawn == "complement":
            return self.complement or f"1 - {self.label}"
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS = (
    Metric("kl", "KL", "nats", "min", "log"),
    Metric("mixed_kl", "KL on mixed views", "nats", "min", "log"),
    Metric("loss", "loss", "", "min", "log"),
    Metric("agreement", "agreement", "", "max", "complement", "disagreement"),
    Metric("accuracy", "accuracy", "", "max", "complement", "error"),
    Metric("central_agreement", "central agreement", "", "max", "complement", "central disagreement"),
    # Diagnostics.
    Metric("grad_norm", "gradient norm", "", "none", "log"),
    Metric("update_norm", "update norm", "", "none", "log"),
    Metric("sharpness", "sharpness (largest Hessian eigenvalue)"),
    Metric("sharpness_error", "relative residual of the sharpness", "", "none", "log"),
    Metric("optimizer_condition_number", "optimizer: condition number", "", "none", "log"),
)
_ROWS = {metric.name: metric for metric in METRICS}


def find(column: str, declared: Mapping[str, Mapping[str, Any]] | None = None) -> Metric:
    """The metric of a column.

    Args:
      column: of a measurement, such as validation_kl, grad_norm or optimizer_failed_roots.
      declared: the field "metrics" of a header, checked by `check`: it takes precedence.

    Returns:
      The metric's row under the column's name, with the part in its labels. A column that is neither
      declared nor in METRICS is a plain scalar: neither direction is better, and it is drawn unchanged.
    """
    rows = _ROWS | {name: _row(name, fields) for name, fields in (declared or {}).items()}
    if column in rows:
        return rows[column]
    part, _, name = column.partition("_")
    if part in PARTS and name in rows:
        row = rows[name]
        complement = f"{PARTS[part]} {row.complement}" if row.complement else ""
        return row._replace(name=column, label=f"{PARTS[part]} {row.label}", complement=complement)
    if column.startswith("optimizer_"):
        return Metric(column, "optimizer: " + column.removeprefix("optimizer_").replace("_", " "))
    return Metric(column, column)


def _row(name: str, fields: Mapping[str, Any]) -> Metric:
    return Metric(name, **({"label": name} | dict(fields)))


def check(declared: object) -> str:
    """The fault in the field "metrics" of a header; an empty string if there is none."""
    if not isinstance(declared, Mapping):
        return "its metrics are not an object"
    for name, fields in declared.items():
        if not isinstance(fields, Mapping) or not all(isinstance(v, str) for v in fields.values()):
            return f"its metric {name} is not an object of texts"
        if unknown := sorted({*fields} - {*Metric._fields} | {*fields} & {"name"}):
            return f"its metric {name} has a field {unknown[0]}; known: {', '.join(Metric._fields[1:])}"
        for field, choices in (("better", get_args(Better)), ("drawn", get_args(Drawn))):
            if fields.get(field, choices[0]) not in choices:
                return f"its metric {name} has {field} {fields[field]!r}; allowed: {', '.join(choices)}"
    return ""


def in_order(columns: Iterable[str]) -> list[str]:
    """Columns in reading order: held-out, test, training, diagnostics; each as in METRICS."""
    parts, names = [*PARTS], [*_ROWS]

    def place(column: str) -> tuple[int, int]:
        part, _, name = column.partition("_")
        if part not in PARTS:
            part, name = "", column
        return (
            parts.index(part) if part else len(parts),
            names.index(name) if name in names else len(names),
        )

    return sorted(columns, key=place)
