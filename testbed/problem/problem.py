"""A problem: a task under a protocol, opened once and passed on."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh

from testbed import devices, process, teachers
from testbed.errors import RequestError, choose, refusing
from testbed.models import network
from testbed.problem import evaluation, generated, in_memory, protocols, streaming
from testbed.problem.evaluation import EvalData, Evaluate, HeldOut, Student
from testbed.problem.lessons import Params, TrainingData, make_keys, make_lesson, split_seeds
from testbed.problem.protocols import PROTOCOLS, REASONS, Lesson
from testbed.problem.source import Source
from testbed.problem.task import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The problem that an optimizer is given. Made by `open_problem`.

    Its methods are pure. Its arrays are on the devices in use when it was opened; held-out data,
    and all data of a stream, are loaded at their first use.

    Attributes:
      task: the task to learn.
      protocol: how a batch becomes a lesson.
      mesh: the devices that it was opened on; None: one device.
      open_source: opens the data.
    """

    task: Task
    protocol: str
    mesh: Mesh | None
    open_source: Callable[[], Source]

    def init(self, key: Array) -> Params:
        """First weights: nested dictionaries of arrays."""
        _ = self.lesson_shapes  # opens the data before anything is traced
        return jax.jit(functools.partial(self.init_with, self.network))(key)

    def lesson(self, seed: int, step: int) -> Lesson:
        """A step's lesson, the same for every optimizer: inputs [b, ...], logits [teachers, b, ...]."""
        data = self.source.batch_at(seed, step)
        return self._lesson(data, make_keys(seed).lessons, jnp.int32(step))

    def loss(self, params: Params, lesson: Lesson) -> Array:
        """The training loss: a scalar, in nats (times the temperature squared)."""
        return protocols.loss(self.task.distance, lesson, self.logits(params, lesson.inputs))

    def logits(self, params: Params, inputs: Array) -> Array:
        """The student's logits [b, ...] on inputs [b, ...]."""
        return network.apply(self.network, params, inputs)

    def evaluate(self, params: Params) -> dict[str, float]:
        """Scores by name, such as "validation_kl"; see `evaluation.evaluate`."""
        return {name: float(score) for name, score in self._evaluate(params, True).items()}

    def make_lesson(self, data: TrainingData, key: Array, step: Array) -> Lesson:
        """The lesson of a step, from the data and the key that `lesson` looks up. Traceable."""
        return make_lesson(self.task, self.protocol, data, key, step)

    def prepare(self) -> None:
        """Computes now what is computed once and cached, such as the teachers' held-out logits.

        Raises:
          RequestError: the task does not fit together; the message names the task.
        """
        with refusing(f"task {self.task.name}"):
            lesson, data = self.lesson_shapes, self.eval_data
            key = jax.eval_shape(jax.random.key, 0)
            params = jax.eval_shape(functools.partial(self.init_with, self.network), key)
            jax.eval_shape(self.loss, params, lesson)
            if data:
                scores = functools.partial(evaluation.evaluate, self.task, self.logits)
                jax.eval_shape(scores, params, data)
            held_out = data.held_out if data else self._streamed_eval[0]
            measured = evaluation.names(self.task, held_out)
            if f"test_{self.task.decides}" not in measured:
                known = [name[5:] for name in measured if name.startswith("test_")]
                raise RequestError(
                    f"decides {self.task.decides}, which is not measured; choose one of "
                    f"{', '.join(known)}"
                )
            if self.task.target.metric not in measured:
                raise RequestError(
                    f"its target {self.task.target.metric} is not measured; choose one of "
                    f"{', '.join(measured)}"
                )

    # What `testbed.training` needs in addition.

    @functools.cached_property
    def network(self) -> nn.Module:
        """The student, in the task's precision."""
        return network.in_precision(self.task.student, self.task.precision)

    @property
    def source(self) -> Source:
        """The data, opened at the first use."""
        if self.mesh != devices.mesh():
            raise ValueError("the problem was opened on other devices; call open_problem on these")
        return self._source

    @functools.cached_property
    def _source(self) -> Source:
        return self.open_source()

    @functools.cached_property
    def eval_data(self) -> EvalData | None:
        """The data that students are measured on; None if they come in batches from the host."""
        if self.task.streamed:
            return None
        source = self.source
        return evaluation.make_eval_data(self.task, self.protocol, source.data, source.held_out())

    @functools.cached_property
    def lesson_shapes(self) -> Lesson:
        """Shapes of a lesson's arrays."""
        key = jax.eval_shape(split_seeds, 0, 0).lessons
        return jax.eval_shape(self.make_lesson, self.source.data, key, 0)

    def init_with(self, student: nn.Module, key: Array) -> Params:
        """First weights of a student, from the shape and dtype of its inputs. Traceable."""
        inputs = self.lesson_shapes.inputs
        return student.init(key, jnp.zeros((1, *inputs.shape[1:]), inputs.dtype))["params"]

    def compile_evaluate(self, student: Student, params: Params) -> Evaluate:
        """The evaluation, compiled for parameters of these shapes."""
        if self.eval_data is not None:
            return evaluation.compile_whole(self.task, student, params, self.eval_data)
        held_out, training = self._streamed_eval
        shapes = self.source.data
        return evaluation.compile_batched(
            self.task, self.protocol, student, params, held_out, training, shapes
        )

    @functools.cached_property
    def _streamed_eval(self) -> tuple[Mapping[str, HeldOut], Sequence[TrainingData]]:
        """For a stream: held-out parts on the host, and training batches of the evaluation."""
        return self.source.held_out(), self.source.eval_batches()

    @functools.cached_property
    def teacher_sha256(self) -> tuple[str, ...]:
        """SHA-256 of each teacher's weights."""
        return tuple(teachers.load(teacher).sha256 for teacher in self.task.teachers)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines a trial of the task, except the trial's own choices."""
        return self.task.fingerprint(self.teacher_sha256)

    @functools.cached_property
    def flops_per_example(self) -> float | None:
        """FLOPs of the student's forward pass, as XLA counts them; None if it does not."""
        inputs = self.lesson_shapes.inputs
        batch = jax.ShapeDtypeStruct((8, *inputs.shape[1:]), inputs.dtype)
        shapes = jax.eval_shape(self.network.init, jax.random.key(0), batch)
        cost = jax.jit(self.network.apply).lower(shapes, batch).cost_analysis()
        return cost["flops"] / batch.shape[0] if cost and "flops" in cost else None

    @functools.cached_property
    def _lesson(self) -> Any:
        return jax.jit(self.make_lesson)

    @functools.cached_property
    def _evaluate(self) -> Evaluate:
        if self.eval_data is None:
            return self.compile_evaluate(self.logits, jax.eval_shape(self.init, make_keys(0).weights))
        compiled = jax.jit(functools.partial(evaluation.evaluate, self.task, self.logits))
        return lambda params, end: jax.device_get(compiled(params, self.eval_data, end))


def open_problem(task: Task, protocol: str = "function_matching") -> Problem:
    """Opens a task under a protocol, for trials. Returns the same value for the same arguments.

    Args:
      task: for example TASKS["digits"].
      protocol: one of PROTOCOLS.

    Raises:
      RequestError: unknown protocol, or the task lacks what it needs.
    """
    process.require_flags()
    return _open(task, protocol, devices.mesh())


@functools.lru_cache(maxsize=16)
def _open(task: Task, protocol: str, mesh: Mesh | None) -> Problem:
    for need in sorted(choose("--protocol", protocol, PROTOCOLS).needs & REASONS.keys()):
        if not _has(task, need):
            raise RequestError(
                f"--protocol {protocol}: not for {task.name}: {REASONS[need]}; choose one of "
                f"{', '.join(fitting(task))}"
            )
    if task.streamed:
        open_source = functools.partial(streaming.open_source, task, protocol)
    elif task.generated:
        open_source = functools.partial(generated.open_source, task)
    else:
        open_source = functools.partial(in_memory.open_source, task, protocol)
    problem = Problem(task, protocol, mesh, open_source)
    if not task.streamed:  # whose data take a while to open
        with refusing(f"task {task.name}"):
            _ = problem.lesson_shapes  # so that `init` can be traced
    return problem


def fitting(task: Task) -> list[str]:
    """The protocols whose needs a task meets."""
    return [
        name
        for name, protocol in PROTOCOLS.items()
        if all(_has(task, need) for need in protocol.needs & REASONS.keys())
    ]


def _has(task: Task, need: str) -> bool:
    if need == "augment":
        return task.augment is not None
    if need == "mix":
        return task.mix is not None
    if need == "finite":
        return not task.generated
    assert need == "labels"
    return task.own_lessons and task.distance.certain is not None and _has_labels(task)


def _has_labels(task: Task) -> bool:
    if task.streamed:
        return True
    if task.generated:
        source: Any = task.source
        drawn = jax.eval_shape(lambda a: source.draw(a, jax.random.key(0), 1), source.arrays())
        return drawn.labels is not None
    return task.arrays().training.labels is not None
