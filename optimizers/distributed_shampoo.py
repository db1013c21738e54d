"""Google's distributed Shampoo, as it is on PyPI (precondition-opt), behind our interface.

The rival in benchmarks, and the reference in tests. It is written for a JAX that still had `tree_map`,
`tree_flatten` and `tree_unflatten` at its top level: here it runs as a private copy of the module
whose `jax` has them; other code that imports the module or jax sees no change.
"""

import functools
import importlib.util
from types import ModuleType
from typing import Any

import jax
import optax

from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Bounds, Range, Spec, bounds


def direction(
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    interval: int = 20,
    block: int = 128,
    merge: int = 128,
    ridge: float = 1e-6,
    graft: str = "rmsprop",
    nesterov: bool = True,
    start: int = 0,
) -> optax.GradientTransformation:
    """Its directions, with momentum as an average, and axes merged up to `merge`.

    With its own default of 4096 a matrix [64, 64] becomes one vector, preconditioned by 32 full
    matrices: ten times the cost on `digits`.
    """
    return scale_by_distributed_shampoo(
        beta1=b1,
        beta2=b2,
        preconditioning_compute_steps=interval,
        block_size=block,
        merge_small_dims_block_size=merge,
        matrix_epsilon=ridge,
        graft_type=graft,
        nesterov=nesterov,
        start_preconditioning_step=start,
        moving_average_for_momentum=True,
    )


def scale_by_distributed_shampoo(
    *, graft_type: str = "rmsprop_normalized", **settings: Any
) -> optax.GradientTransformation:
    """Its directions: the negative of its updates with learning rate 1.

    Args:
      graft_type: a member of its GraftingType, in lower case, or "sgd" and the like.
      settings: of `distributed_shampoo` in precondition/distributed_shampoo.py; it documents them.
    """
    reference = module()
    kinds = {kind.name.lower(): kind for kind in reference.GraftingType}
    if graft_type not in kinds:
        raise ValueError(f"graft={graft_type!r}: distributed_shampoo takes one of {', '.join(kinds)}")
    return reference.distributed_shampoo(
        learning_rate=-1.0,
        graft_type=kinds[graft_type],
        generate_training_metrics=False,
        **settings,
    )


@functools.cache
def module() -> ModuleType:
    """A private copy of precondition.distributed_shampoo that runs on today's JAX."""
    found = importlib.util.find_spec("precondition.distributed_shampoo")
    if found is None or found.loader is None:
        raise ModuleNotFoundError("distributed_shampoo needs the package precondition-opt")
    copy = importlib.util.module_from_spec(found)
    found.loader.exec_module(copy)
    copy.jax = _OldJax()  # type: ignore[attr-defined]
    # It asks for float64 and, where that is off, gets float32 and a warning; so it gets float32.
    copy._MAT_INV_PTH_ROOT_DTYPE = jax.numpy.float32  # type: ignore[attr-defined]
    return copy


class _OldJax:
    """Today's jax, with the names that it dropped from its top level."""

    tree_map = staticmethod(jax.tree_util.tree_map)
    tree_flatten = staticmethod(jax.tree_util.tree_flatten)
    tree_unflatten = staticmethod(jax.tree_util.tree_unflatten)

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)


build = in_recipe(direction, learning_rate=0.00462, weight_decay=0.00055)

SPEC = Spec(
    name="distributed_shampoo",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, b2=Bounds(0.0, 1.0 + 1e-9)),
    reference=(
        "Anil et al. 2020 (arXiv 2002.09018), google-research/precondition, PyPI precondition-opt "
        "0.3.0. Momentum as an average; schedule and decoupled decay are the recipe's, not its own."
    ),
)
