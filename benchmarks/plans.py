"""Plans of comparisons as files: written once, and followed to the letter afterwards.

A plan has what was asked for, the optimizers with their hyperparameters and checksums, and what scouting
found. A comparison that is run again from its plan has the same trials, and so the same answer.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.comparison import Design, Match, Plan
from testbed import plugins, records
from testbed.cli import unwritable
from testbed.errors import RequestError
from testbed.training.optimizer import from_spec

SCHEMA = 1


def identity(design: Design) -> dict[str, Any]:
    """What the trials of a comparison depend on."""
    return {
        "task": design.problem.task.name,
        "task_fingerprint": design.problem.fingerprint,
        "protocol": design.problem.protocol,
        "metric": design.metric,
        "steps": design.steps,
        "baseline": design.baseline,
        "students": design.students,
        "seed": design.seed,
        "arms": [
            {
                "opt": arm.opt,
                "name": arm.name,
                "sha256": from_spec(arm.spec, arm.hyperparameters).sha256,
                "hyperparameters": plugins.as_json(arm.hyperparameters),
            }
            for arm in design.arms
        ],
    }


def key(design: Design) -> str:
    """A short name for a comparison's folder, from its identity."""
    about = identity(design)
    about["arms"] = [{k: v for k, v in arm.items() if k != "opt"} for arm in about["arms"]]
    return records.run_id(about)


def as_json(
    design: Design, plan: Plan, request: Mapping[str, Any], tuned: Mapping[str, Any], asked: int
) -> dict[str, Any]:
    """A plan as it is written to a file.

    Args:
      design: of the comparison.
      plan: what follows from it.
      request: the options of the command line that asked for it.
      tuned: name -> what tuning found; empty where nothing was tuned.
      asked: how often this comparison was requested, with this and with other budgets.
    """
    return {
        "schema": SCHEMA,
        "request": dict(request),
        "asked": asked,
        "tuned": dict(tuned),
        **identity(design),
        **{k: v for k, v in dataclasses.asdict(plan).items() if k != "matches"},
        "matches": {
            name: dataclasses.asdict(match)
            | {"ladder": [[steps, match.ladder[steps]] for steps in sorted(match.ladder)]}
            for name, match in plan.matches.items()
        },
    }


def from_json(content: Mapping[str, Any]) -> Plan:
    """The plan in the content of a file."""
    matches = {
        name: Match(**{**match, "ladder": {int(s): float(v) for s, v in match["ladder"]}})
        for name, match in content["matches"].items()
    }
    names = [field.name for field in dataclasses.fields(Plan) if field.name != "matches"]
    return Plan(matches=matches, **{name: content[name] for name in names})


def read(path: Path) -> dict[str, Any]:
    """The content of a plan's file.

    Raises:
      RequestError: it cannot be read, or is no plan of this version.
    """
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise RequestError(f"--plan {path}: it has schema {content['schema']}, not {SCHEMA}")
        from_json(content)
        _ = content["tuned"], content["arms"], content["request"], content["asked"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"--plan {path}: not a plan ({error}); compare.py writes one") from error
    return dict(content)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a plan's file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable("--plan", path, error) from error
    records.replace(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def require_same(path: Path, content: Mapping[str, Any], design: Design) -> None:
    """Refuses to follow a plan that was made for something else than what is there now.

    Raises:
      RequestError: the task or an optimizer has changed since.
    """
    now = json.loads(json.dumps(identity(design)))
    for name, value in now.items():
        if name == "arms":
            for arm, planned in zip(value, content["arms"], strict=True):
                if any(arm[key] != planned[key] for key in ("sha256", "hyperparameters")):
                    raise RequestError(
                        f"--plan {path}: optimizer {arm['name']} has changed since the plan was made; "
                        "make another plan"
                    )
        elif content.get(name) != value:
            raise RequestError(
                f"--plan {path}: its {name} is {content.get(name)}, now it is {value}; make another plan"
            )
