"""A trial: one optimizer on one problem, once."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from testbed import plugins, records
from testbed.errors import RequestError
from testbed.models import public
from testbed.problem.lessons import Keys, Params, make_keys
from testbed.problem.problem import Problem
from testbed.problem.task import Task
from testbed.training.compile import CompiledTrial, compile_trial
from testbed.training.optimizer import Optimizer, as_optimizer


class InitCheckpoint(NamedTuple):
    """A checkpoint that a student starts from, instead of from random weights."""

    path: Path
    sha256: str
    fresh_head: bool  # whether the classifier still starts at zero

    @classmethod
    def read(cls, path: Path, *, fresh_head: bool = False) -> "InitCheckpoint":
        """The checkpoint at a path.

        Raises:
          RequestError: it cannot be read.
        """
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise RequestError(f"--init {path}: not a file")
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RequestError(f"--init {path}: cannot be read ({error.strerror})") from error
        return cls(path, sha256, fresh_head)

    def params(self, shapes: Params) -> Params:
        """The student's parameters; see `public.fill` for its errors."""
        return public.fill(
            self.path.read_bytes(), f"--init {self.path}", shapes, fresh_head=self.fresh_head
        )


@dataclasses.dataclass(frozen=True)
class Trial:
    """One optimizer on one problem, once.

    Attributes:
      problem: the problem to learn, from `open_problem`.
      optimizer: anything that `as_optimizer` accepts, such as an optax transformation or "shampoo".
      total_steps: the horizon, which the optimizer knows in advance.
      seed: of first weights, the optimizer's randomness and, without `lesson_seed`, the lessons.
      lesson_seed: another seed for the lessons, which several students can share.
      init: a checkpoint, or the path of one, instead of random weights.
      name: of the optimizer in records, instead of its own.
    """

    problem: Problem
    optimizer: Optimizer
    total_steps: int
    seed: int = 0
    lesson_seed: int | None = None
    init: InitCheckpoint | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("total_steps", self.total_steps, 1),
            ("seed", self.seed, 0),
            ("lesson_seed", self.lessons, 0),
        ):
            if not least <= value < 2**31:
                raise RequestError(f"{name} {value}: must be a whole number from {least} to 2^31 - 1")
        # What a user may give becomes what the attributes' types say.
        optimizer = as_optimizer(self.optimizer, self.problem, self.name)
        object.__setattr__(self, "optimizer", optimizer)
        init: Any = self.init
        if isinstance(init, str | Path):
            object.__setattr__(self, "init", InitCheckpoint.read(Path(init)))

    @property
    def task(self) -> Task:
        """The task to learn."""
        return self.problem.task

    @property
    def protocol(self) -> str:
        """How a batch becomes a lesson."""
        return self.problem.protocol

    @property
    def lessons(self) -> int:
        """The seed of its lessons."""
        return self.seed if self.lesson_seed is None else self.lesson_seed

    def identity(self) -> dict[str, Any]:
        """Everything that determines the trial, as in the header of its record."""
        identity = {
            "task": self.task.name,
            "task_fingerprint": self.problem.fingerprint,
            "teacher_sha256": list(self.problem.teacher_sha256),
            "protocol": self.protocol,
            "temperature": self.task.temperature,
            "optimizer": self.optimizer.name,
            "optimizer_sha256": self.optimizer.sha256,
            "hyperparameters": plugins.as_json(self.optimizer.hyperparameters),
            "seed": self.seed,
            "total_steps": self.total_steps,
        }
        # Fields that few trials have.
        if self.init:
            identity["init"] = {"sha256": self.init.sha256, "fresh_head": self.init.fresh_head}
        if self.lessons != self.seed:
            identity["lesson_seed"] = self.lessons
        return identity

    def keys(self) -> Keys:
        """Its random keys."""
        return make_keys(self.seed, self.lessons)

    def compile(self) -> CompiledTrial:
        """Its programs, compiled in advance."""
        return compile_trial(
            self.problem, self.optimizer, self.total_steps, from_init=self.init is not None
        )

    def record_path(self, out: Path) -> Path:
        """`<out>/<task>/<optimizer>/<run_id>.jsonl`."""
        return out / self.task.name / self.optimizer.name / f"{records.run_id(self.identity())}.jsonl"
