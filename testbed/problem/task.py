"""The definition of a task."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from flax import linen as nn
from jax import Array

from testbed.data.arrays import Data, Generated
from testbed.data.tfds import Stream
from testbed.data.views import mixup
from testbed.errors import RequestError, check_name
from testbed.identity import source_sha256
from testbed.metrics import Metric
from testbed.models.network import parts_of
from testbed.problem.distances import CATEGORICAL, Distance
from testbed.problem.scores import Score
from testbed.teachers import ExactTeacher, NetworkTeacher, arrays_sha256

Source = Callable[[], Data] | Stream | Generated


class Target(NamedTuple):
    """A trial reaches the target at its first measurement that is at least this good."""

    metric: str
    value: float
    mode: Literal["min", "max"]


class Published(NamedTuple):
    """A paper's settings at one horizon.

    Attributes:
      temperature: of the distance in training.
      hyperparameters: name of an optimizer -> its hyperparameters, in this project's terms; they replace
        its defaults.
    """

    temperature: float
    hyperparameters: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A fixed problem: its data, the student, its teachers, and how the student is evaluated.

    Attributes:
      name: as in `--task`, and in records and the names of their folders; see `errors.check_name`.
      summary: one line for `--list`.
      source: the data: a function that loads arrays which fit the device, a stream, or a generator.
      student: network whose parameters are learned: inputs [b, ...] -> logits [b, classes] or
        [b, positions, classes].
      teachers: the loss is the sum of the distances to each.
      temperature: of the distance in training. Held-out KL is always measured at 1.
      batch_size: examples per step.
      horizons: name -> total steps; the first is the default.
      target: the value that "steps to target" refers to.
      augment: key, inputs -> one random view of each; for a stream, the part that runs on the device;
        None: inputs are used unchanged.
      mix: key, views -> views mixed with each other; None if inputs cannot or need not be mixed.
      distance: between the outputs of teacher and student.
      measure_every: steps from one measurement to the next; fewer if a trial would have fewer than
        10 measurements, more if it would have more than 100.
      views_per_input: random views of each held-out input in the evaluation; 0: the evaluation uses
        central views only, as in the paper.
      mixed_per_input: views of each test input that are augmented and mixed as lessons are, on which
        `mixed_kl` is measured (a quarter as many of each validation input); 0: none are.
      decides: the score of test data that comparisons are made by, such as "kl" or "mixed_kl"; lower is
        better.
      published: horizon -> temperature and hyperparameters there.
      precision: of activations and convolutions, in networks that have a `dtype`; parameters are
        float32.
      own_lessons: whether lessons come from the data set of the teachers and the evaluation; if not,
        there are no labels to learn from.
      scores: name -> a score of the task's own, measured in addition to `scores.SCORES`.
      metrics: a row for each of these scores: its label, unit, direction and scale.
      version: to be raised with any change to what the testbed computes from these values.
    """

    name: str
    summary: str
    source: Source
    student: nn.Module
    teachers: tuple[NetworkTeacher | ExactTeacher, ...]
    temperature: float
    batch_size: int
    horizons: Mapping[str, int]
    target: Target
    augment: Callable[[Array, Array], Array] | None = None
    mix: Callable[[Array, Array], Array] | None = mixup
    distance: Distance = CATEGORICAL
    measure_every: int = 40
    views_per_input: int = 8
    mixed_per_input: int = 0
    decides: str = "kl"
    published: Mapping[str, Published] = dataclasses.field(default_factory=dict)
    precision: str = "float32"
    own_lessons: bool = True
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    version: int = 1

    def __post_init__(self) -> None:
        check_name("task", self.name)
        names = [teacher.name for teacher in self.teachers]
        if not self.horizons or not names or len({*names}) < len(names):
            raise RequestError(
                f"task {self.name}: it needs a horizon, and teachers of different names; it has "
                f"{len(self.horizons)} horizons and the teachers {', '.join(names) or 'none'}"
            )

    @property
    def streamed(self) -> bool:
        """Whether the inputs come as a stream from the host."""
        return isinstance(self.source, Stream)

    @property
    def generated(self) -> bool:
        """Whether the inputs are drawn on the device, without end."""
        return isinstance(self.source, Generated)

    def arrays(self) -> Data:
        """The data of a task whose data set fits the device."""
        assert not isinstance(self.source, Stream | Generated)
        return self.source()

    def stream(self) -> Stream:
        """The data of a streamed task, not opened yet."""
        assert isinstance(self.source, Stream)
        return self.source

    def at(self, horizon: str) -> "Task":
        """The task at a horizon, by which a paper may choose the temperature."""
        published = self.published.get(horizon)
        return dataclasses.replace(self, temperature=published.temperature) if published else self

    def data_sha256(self) -> str:
        """SHA-256 of the data; for a generator, of its arrays."""
        if isinstance(self.source, Generated):
            return arrays_sha256(self.source.arrays())
        data = self.source()
        return data.sha256 or arrays_sha256(data)

    def fingerprint(self, teacher_sha256: tuple[str, ...]) -> str:
        """SHA-256 of all that determines a trial of this task, except its own choices (seed, …)."""
        plain = ("name", "temperature", "batch_size", "target", "measure_every", "views_per_input")
        values = {name: repr(getattr(self, name)) for name in (*plain, "precision", "own_lessons")}
        if self.mixed_per_input:
            values["mixed_per_input"] = repr(self.mixed_per_input)
        if self.published:  # with one temperature for each horizon; the trial's identity has it
            del values["temperature"]
        code = {name: getattr(self, name) for name in ("augment", "mix", "distance", "scores", "source")}
        code["student"] = parts_of(self.student)
        values |= {
            "version": str(self.version),
            "code": source_sha256(code, f"task {self.name}"),
            "teachers": repr([teacher.code_sha256() for teacher in self.teachers]),
            "teacher_sha256": repr(teacher_sha256),
            "data": self.data_sha256(),
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
