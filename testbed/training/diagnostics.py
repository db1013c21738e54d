"""Diagnostics: what a measured step shows about training, off the clock, without changing a bit of it.

A lesson is a function of (seed, step), so that everything a step computes can be recomputed. A new
diagnostic is one function of a `Moment` here and one row in `testbed.metrics`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from testbed import devices
from testbed.errors import choose as choose_name
from testbed.problem import protocols
from testbed.problem.lessons import Keys, Params, TrainingData
from testbed.training.compile import ProgramKey, make_functions
from testbed.training.step import Info, State

ITERATIONS = 40  # Hessian-vector products of `sharpness`

OWN = "optimizer"  # the name that requests what an optimizer says about its work
Own = Callable[[Any], Mapping[str, Array]]  # opt_state -> that: scalars by name


class Moment(NamedTuple):
    """A measured step: the state before it, and what the step computes on its lesson."""

    state: State
    info: Info
    loss: Callable[[Params], Array]  # on the step's lesson


def grad_norm(moment: Moment) -> dict[str, Array]:
    """Euclidean norm of the gradient on the lesson of the next step."""
    return {"grad_norm": _norm(moment.info.grad)}


def update_norm(moment: Moment) -> dict[str, Array]:
    """Euclidean norm of what the next step adds to the parameters."""
    return {"update_norm": _norm(moment.info.updates)}


def sharpness(moment: Moment) -> dict[str, Array]:
    """Largest eigenvalue of the Hessian of the loss on the lesson of the next step.

    By Lanczos' recurrence (Lanczos 1950) of ITERATIONS Hessian-vector products from a fixed random
    start, in float32 and without reorthogonalization: the copies of eigenvalues that this causes do not
    change the largest one (Paige 1972). `sharpness_error` is the residual |H v - s v| of the
    Ritz pair, which bounds the distance of `sharpness` from an eigenvalue, as a share of it.
    """
    start, unravel = ravel_pytree(moment.state.params)

    def hessian_times(v: Array) -> Array:
        grad = jax.grad(moment.loss)
        return ravel_pytree(jax.jvp(grad, (moment.state.params,), (unravel(v),))[1])[0]

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[Any, tuple[Array, Array]]:
        before, v, beta = carry
        w = hessian_times(v) - beta * before
        alpha = jnp.vdot(w, v)
        w = w - alpha * v
        norm = jnp.linalg.norm(w)
        return (v, w / jnp.maximum(norm, 1e-30), norm), (alpha, norm)

    v = random.normal(random.key(0), start.shape, start.dtype)
    carry = (jnp.zeros_like(v), v / jnp.linalg.norm(v), jnp.zeros((), v.dtype))
    _, (alphas, betas) = jax.lax.scan(step, carry, None, length=min(ITERATIONS, start.size))
    # Once a residual is 0, the eigenvalues are known, and what follows must not be the largest.
    known = jnp.cumsum(jnp.append(0.0, betas[:-1]) == 0) > 1
    alphas = jnp.where(known, jnp.min(jnp.where(known, jnp.inf, alphas)), alphas)
    off = betas[:-1]
    values, vectors = jnp.linalg.eigh(jnp.diag(alphas) + jnp.diag(off, 1) + jnp.diag(off, -1))
    residual = jnp.abs(betas[-1] * vectors[-1, -1])
    return {"sharpness": values[-1], "sharpness_error": residual / jnp.abs(values[-1])}


def _norm(tree: Params) -> Array:
    return jnp.linalg.norm(ravel_pytree(tree)[0])


DIAGNOSTICS: Mapping[str, Callable[[Moment], dict[str, Array]]] = MappingProxyType(
    {"grad_norm": grad_norm, "update_norm": update_norm, "sharpness": sharpness}
)


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """The names, without repetition.

    Raises:
      RequestError: one of them is unknown.
    """
    for name in names:
        choose_name("--diagnose", name, dict.fromkeys((*DIAGNOSTICS, OWN)))
    return tuple(dict.fromkeys(names))


@functools.lru_cache(maxsize=16)
def make_diagnose(
    names: tuple[str, ...],
    key: ProgramKey,
    own: Own | None,
    *,
    checkpointed: bool,
) -> Any:
    """State, data of its step, keys, hyperparameters -> values of the chosen diagnostics; jitted.

    Args:
      names: from `choose`.
      key: the key of the trial's programs.
      own: the optimizer's own, recorded as optimizer_<name>.
      checkpointed: as in `make_functions`.
    """
    functions, problem = make_functions(key, checkpointed=checkpointed), key.problem

    def diagnose(state: State, data: TrainingData, keys: Keys, hp: Any) -> dict[str, Array]:
        lesson = problem.make_lesson(data, keys.lessons, state.step)

        def loss(params: Params) -> Array:
            logits = functions.student(params, lesson.inputs)
            return protocols.loss(problem.task.distance, lesson, logits)

        moment = Moment(state, functions.step(state, data, keys, hp)[1], loss)
        values: dict[str, Array] = {}
        for name in names:
            if name != OWN:
                values |= DIAGNOSTICS[name](moment)
            elif own:
                counts = own(state.opt_state)
                values |= {f"{OWN}_{count}": value for count, value in counts.items()}
        return values

    return jax.jit(diagnose, out_shardings=devices.replicated())


@functools.lru_cache(maxsize=64)
def make_counts(own: Own | None, mesh: Mesh | None) -> Callable[[Any], dict[str, int]]:
    """opt_state -> what an optimizer counts of its work: those of its own values that are integers.

    Every record ends with them. The values that are no integers may be expensive; they are not computed.

    Args:
      own: the optimizer's own; None: it counts nothing.
      mesh: the devices in use.
    """
    if own is None:
        return lambda opt_state: {}
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh else None

    @functools.partial(jax.jit, out_shardings=everywhere)
    def counts(opt_state: Any) -> dict[str, Array]:
        values = {name: jnp.asarray(value) for name, value in own(opt_state).items()}
        return {n: v for n, v in values.items() if jnp.issubdtype(v.dtype, jnp.integer)}

    return lambda opt_state: {n: int(v) for n, v in jax.device_get(counts(opt_state)).items()}
