"""What a task is."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from flax import linen as nn

from testbed.data.digits import Data
from testbed.lessons import Crop


class Target(NamedTuple):
    """A trial is "there" at its first measurement that is at least as good as this."""

    metric: str
    value: float
    mode: Literal["min", "max"]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A fixed problem: what is taught, to whom, by whom, and how it is examined.

    Attributes:
      name: as in `--task`.
      summary: one line for `--list`.
      load: the data.
      crop: key, images -> one random view of each.
      student: network whose parameters are learned.
      teachers: names of shipped teachers; the loss is the sum of the distances to each.
      temperature: of the distance in training. Held-out KL is always measured at 1.
      batch_size: images per step.
      horizons: name -> total steps.
      target: what "steps to target" counts to.
      measure_every: steps from one measurement to the next; fewer where a trial would have less than
        10 measurements, more where it would have more than 100.
      views_per_image: random views of each held-out image in the examination.
      version: raised by whoever changes what the code above makes of these values.
    """

    name: str
    summary: str
    load: Callable[[], Data]
    crop: Crop
    student: nn.Module
    teachers: tuple[str, ...]
    temperature: float
    batch_size: int
    horizons: Mapping[str, int]
    target: Target
    measure_every: int = 40
    views_per_image: int = 8
    version: int = 1

    def fingerprint(self, teacher_sha256: tuple[str, ...]) -> str:
        """SHA-256 of all that determines a trial of this task but for its own choices (seed, …)."""
        values = {
            field.name: repr(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in ("load", "summary", "horizons", "student")
        }
        # A flax module's repr depends on the flax version; its fields do not.
        student = {
            field.name: repr(getattr(self.student, field.name))
            for field in dataclasses.fields(self.student)
            if field.name not in ("parent", "name")
        }
        values["student"] = f"{type(self.student).__name__}{sorted(student.items())}"
        values["data"] = self.load().sha256
        values["teacher_sha256"] = repr(teacher_sha256)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
