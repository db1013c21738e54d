"""What a task is."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from flax import linen as nn

from testbed.data.digits import Data
from testbed.data.stream import Stream
from testbed.lessons import Crop
from testbed.teachers import TEACHERS


class Target(NamedTuple):
    """A trial is "there" at its first measurement that is at least as good as this."""

    metric: str
    value: float
    mode: Literal["min", "max"]


class Published(NamedTuple):
    """What a paper used at one horizon.

    Attributes:
      temperature: of the distance in training.
      hyperparameters: name of an optimizer -> its hyperparameters, in this project's terms; they replace
        its defaults.
    """

    temperature: float
    hyperparameters: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A fixed problem: what is taught, to whom, by whom, and how it is examined.

    Attributes:
      name: as in `--task`.
      summary: one line for `--list`.
      load: the data: arrays that fit the device, or a stream.
      crop: key, images -> one random view of each; of a stream, what is left to do on the device.
      student: network whose parameters are learned.
      teachers: their names; the loss is the sum of the distances to each.
      temperature: of the distance in training. Held-out KL is always measured at 1.
      batch_size: images per step.
      horizons: name -> total steps; the first is the default.
      target: what "steps to target" counts to.
      measure_every: steps from one measurement to the next; fewer where a trial would have less than
        10 measurements, more where it would have more than 100.
      views_per_image: random views of each held-out image in the examination; 0: the examination is
        on central views alone, as in the paper.
      published: horizon -> temperature and hyperparameters there.
      precision: of activations and convolutions, in networks that have a `dtype`; parameters are
        float32.
      own_lessons: whether lessons are of the data set that teachers and examination are for; where they
        are not, there are no labels to teach.
      version: raised by whoever changes what the code above makes of these values.
    """

    name: str
    summary: str
    load: Callable[[], Data] | Stream
    crop: Crop
    student: nn.Module
    teachers: tuple[str, ...]
    temperature: float
    batch_size: int
    horizons: Mapping[str, int]
    target: Target
    measure_every: int = 40
    views_per_image: int = 8
    published: Mapping[str, Published] = dataclasses.field(default_factory=dict)
    precision: str = "float32"
    own_lessons: bool = True
    version: int = 1

    @property
    def streamed(self) -> bool:
        """Whether the images come as a stream instead of as arrays."""
        return isinstance(self.load, Stream)

    def arrays(self) -> Data:
        """The data of a task that is not streamed."""
        data = self.load()
        assert isinstance(data, Data)
        return data

    def stream(self) -> Stream:
        """The data of a task that is streamed, not opened yet."""
        assert isinstance(self.load, Stream)
        return self.load

    def at(self, horizon: str) -> "Task":
        """The task as it is at a horizon: a paper may choose the temperature by it."""
        found = self.published.get(horizon)
        return dataclasses.replace(self, temperature=found.temperature) if found else self

    def in_precision(self, network: nn.Module) -> nn.Module:
        """A student or teacher, computing in the task's precision where it can."""
        return network.clone(dtype=self.precision) if has_precision(network) else network

    def fingerprint(self, teacher_sha256: tuple[str, ...]) -> str:
        """SHA-256 of all that determines a trial of this task but for its own choices (seed, …)."""
        values = {
            field.name: repr(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in ("load", "summary", "horizons", "published", "student")
        }
        if self.published:  # with one temperature for each horizon; the trial's identity has it
            del values["temperature"]
        # A flax module's repr depends on the flax version; its fields do not.
        student = fields_of(self.in_precision(self.student))
        values["student"] = f"{type(self.student).__name__}{sorted(student.items())}"
        for name in self.teachers:
            values[f"teacher {name}"] = repr(sorted(fields_of(TEACHERS[name].network).items()))
        values["data"] = self.load().sha256
        values["teacher_sha256"] = repr(teacher_sha256)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def has_precision(network: nn.Module) -> bool:
    """Whether a network can compute in another precision than float32."""
    return "dtype" in fields_of(network)


def fields_of(network: nn.Module) -> dict[str, Any]:
    """What a network is made of, as text."""
    return {
        field.name: repr(getattr(network, field.name))
        for field in dataclasses.fields(network)
        if field.name not in ("parent", "name")
    }
