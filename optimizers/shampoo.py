"""Shampoo: a preconditioner for each axis of each block of each tensor.

For a block G [m, n] of a gradient:

    L <- b2 L + (1 - b2) G G^T        [m, m]     statistics, at every step
    R <- b2 R + (1 - b2) G^T G        [n, n]
    P = (L + r I)^(-1/4), Q = (R + r I)^(-1/4)   inverse roots, once in `interval` steps
    D = P M Q                                    M: the gradient, or its average

and per tensor D is given the length of another method's direction (`graft`). A block with k axes has k
statistics and the exponent -1/(2 k).

The pieces: `blocks` cuts parameters and stacks the blocks, `roots` has inverse roots, `grafting` has
the lengths; here are statistics, preconditioning, and which roots are renewed when and where.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from optimizers.parts import axes, blocks, grafting, sharding
from optimizers.parts.roots import METHODS, Method, condition_numbers, inverse_roots
from optimizers.recipe import WEIGHT_DECAY, in_recipe
from optimizers.spec import Bounds, Range, Spec, bounds

TOLERANCE = 0.1  # residual of a root above which the old one is kept; Google's threshold


class Config(NamedTuple):
    """What is fixed when a step is compiled."""

    accumulate: Literal["average", "sum"]
    update_every: int  # steps from one renewal of a root to the next
    stagger: bool
    root_order: int  # 0: twice the number of axes
    relative: bool  # whether epsilon is relative to the largest eigenvalue
    method: Method

    @property
    def phases(self) -> int:
        """A root is renewed in one of this many consecutive renewals."""
        return self.update_every if self.stagger else 1


class Traced(NamedTuple):
    """Scalars that a step is given beside arrays of blocks; the same on all devices."""

    step: Array  # [] int32: updates before this one
    decay: Array  # []: of the statistics
    epsilon: Array  # []: the ridge


class Blocks(NamedTuple):
    """What is kept of the K blocks of one shape; per axis of length d, in order.

    With several devices K is padded to a multiple of their number, and divided over them.
    """

    statistics: tuple[Array, ...]  # [K, d, d]; of an axis longer than max_dim the diagonal, [K, d]
    roots: tuple[Array, ...]  # [K, d, d]; of such an axis nothing, [K, 0]


class ShampooState(NamedTuple):
    """State of `scale_by_shampoo`.

    Memory, in floats per parameter: 4 in `blocks` for a matrix of whole blocks [B, B], 2 B for a vector
    of blocks [B]; one in `average`, and one in `second_moment`.
    """

    step: Array  # [] int32: updates so far
    average: Any  # of gradients, like the parameters; None without b1
    second_moment: Any  # the graft's, like the parameters; None where it has none
    blocks: tuple[Blocks, ...]  # one per shape of blocks
    failures: Array  # [] int32: roots that failed their check, so that the old ones were kept
    ridge: Array  # []: for `diagnostics`


def scale_by_shampoo(
    b1: float | None = 0.9,
    b2: float = 0.95,
    shampoo_b2: float = 0.95,
    *,
    accumulate: Literal["average", "sum"] = "average",
    initial: float = 0.0,
    interval: int = 20,
    stagger: bool = True,
    start: int = 0,
    block: int = 128,
    merge: int = 4096,
    keep_last: bool = True,
    longest: int = 8192,
    ridge: float = 1e-6,
    relative: bool = True,
    power: int = 0,
    method: Method = "auto",
    graft: str = "adam",
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Shampoo's direction. For momentum after the preconditioner chain it with `optax.trace`.

    Args:
      b1: decay of the averaged gradient that is preconditioned, as in Meta's; None: the gradient itself,
        as in Google's, whose momentum comes after the preconditioner.
      b2: decay of the graft's second moment.
      shampoo_b2: decay of the statistics.
      accumulate: statistics as an "average" or as a "sum" (Gupta et al.; without shampoo_b2).
      initial: statistics start at initial * I.
      interval: steps from one renewal of a root to the next.
      stagger: renew a share of the roots at every step, so that all steps cost the same; until each has
        been renewed once, directions are the graft's. Otherwise all at once, from the first step on.
      start: steps whose directions are the graft's in any case. Momentum after the preconditioner
        (`optax.trace`) then holds those when the preconditioner takes over; Google's has a second
        momentum that holds preconditioned directions from the first step on, and changes over to it:
        with a start and momentum the two are different methods, 60 % apart at the switch.
      block: largest axis of a block.
      merge: neighbouring axes are merged while their product is at most this.
      keep_last: do not merge the last axis; Google's does.
      longest: longer axes are not cut and have diagonal statistics; so a long vector has Adagrad's.
      ridge: added to the eigenvalues of statistics; at least `roots.LEAST_RIDGE`, which for newton (on
        accelerators) is 1e-6 of the largest.
      relative: whether the ridge is relative to the largest eigenvalue.
      power: p of the inverse p-th roots; 0: twice the number of axes.
      method: of computing roots, see `roots.inverse_roots`.
      graft: whose length directions have: one of `grafting.GRAFTS`, or "none".
      eps: the graft's.

    With several devices in the context's mesh (`jax.set_mesh`) the blocks are divided over all of
    them: each keeps statistics and roots of its share, and only directions are gathered.

    Raises:
      ValueError: accumulate, method or graft is none of these.
    """
    _require("accumulate", accumulate, ("average", "sum"))
    _require("method", method, METHODS)
    _require("graft", graft, ("none", *grafting.GRAFTS))
    config = Config(accumulate, interval, stagger, power, relative, method)
    kind = grafting.GRAFTS["sgd" if graft == "none" else graft]
    start = max(start, config.phases - 1)  # by then, every root has been renewed once

    def layout_of(tree: Any) -> blocks.Layout:
        shapes = [leaf.shape for leaf in jax.tree.leaves(tree)]
        return blocks.cut(shapes, block, merge, longest, keep_last)

    def init(params: Any) -> ShampooState:
        return ShampooState(
            step=jnp.zeros([], jnp.int32),
            average=None if b1 is None else jax.tree.map(jnp.zeros_like, params),
            second_moment=grafting.init(kind, params),
            blocks=sharding.divide(
                tuple(start_of(s, longest, initial) for s in layout_of(params).stacks)
            ),
            failures=jnp.zeros([], jnp.int32),
            ridge=jnp.asarray(ridge, jnp.float32),
        )

    def update(grads: Any, state: ShampooState, params: Any = None) -> tuple[Any, ShampooState]:
        del params
        layout, count = layout_of(grads), state.step + 1
        average, top = _average(b1, grads, state.average, count)
        moments = grafting.second_moments(kind, grads, state.second_moment, b2)
        lengths = grafting.direction(kind, top, moments, b2, count, eps)

        traced = Traced(state.step, jnp.float32(shampoo_b2), jnp.float32(ridge))
        whole, kept, failed = precondition_tree(config, layout, traced, grads, top, state.blocks)
        updates = _with_lengths(lengths, whole, graft != "none", state.step < start)
        state = ShampooState(count, average, moments, kept, state.failures + failed, state.ridge)
        return updates, state

    return optax.GradientTransformation(init, update)


def start_of(stack: blocks.Stack, max_dim: int, initial: float) -> Blocks:
    """Statistics initial * I, roots I."""
    k = stack.size

    def eye(d: int) -> Array:
        return jnp.ones((k, d)) if d > max_dim else jnp.broadcast_to(jnp.eye(d), (k, d, d))

    return Blocks(
        statistics=tuple(initial * eye(d) for d in stack.shape),
        roots=tuple(jnp.zeros((k, 0)) if d > max_dim else eye(d) for d in stack.shape),
    )


def precondition_tree(
    config: Config,
    layout: blocks.Layout,
    traced: Traced,
    grads: Any,
    top: Any,
    kept: tuple[Blocks, ...],
) -> tuple[list[Array], tuple[Blocks, ...], Array]:
    """A whole tree, preconditioned; on several devices each takes its share of the blocks.

    Args:
      config: how.
      layout: of the tree's leaves in blocks.
      traced: of this step.
      grads: gradients, for the statistics.
      top: what is preconditioned; the gradients themselves, or like them.
      kept: from the step before.

    Returns:
      the preconditioned leaves, what is kept, and how many roots failed.
    """
    # Whole on every device, before each takes its share: otherwise the compiler cuts the gradients
    # themselves in shares, which do not match, and moves them about.
    grad_blocks = sharding.whole(blocks.gather(jax.tree.leaves(grads), layout))
    to_precondition = grad_blocks
    if top is not grads:
        to_precondition = sharding.whole(blocks.gather(jax.tree.leaves(top), layout))
    (directions, kept), failed = sharding.on_each(
        lambda *args: step_blocks(config, layout.stacks, *args),
        traced,
        grad_blocks,
        to_precondition,
        kept,
    )
    return blocks.scatter(sharding.whole(directions), jax.tree.leaves(top), layout), kept, failed


def _with_lengths(lengths: Any, directions: Sequence[Array], borrow: bool, too_early: Array) -> Any:
    """A tree of directions, with the lengths of the graft's; too early, the graft's themselves."""
    leaves, tree = jax.tree.flatten(lengths)
    if borrow:
        directions = [grafting.borrow(length, d) for length, d in zip(leaves, directions, strict=True)]
    directions = [jnp.where(too_early, length, d) for length, d in zip(leaves, directions, strict=True)]
    return jax.tree.unflatten(tree, directions)


def step_blocks(
    config: Config,
    stacks: Sequence[blocks.Stack],
    traced: Traced,
    grad_blocks: Sequence[Array],
    to_precondition: Sequence[Array],
    kept: Sequence[Blocks],
) -> tuple[tuple[tuple[Array, ...], tuple[Blocks, ...]], Array]:
    """Statistics, roots, directions; on one device, of its share of the blocks.

    Args:
      config: how.
      stacks: of all devices; the order of axes and blocks.
      traced: of this step.
      grad_blocks: blocks of the gradient, per stack [K, ...].
      to_precondition: blocks of what is preconditioned.
      kept: from the step before.

    Returns:
      (directions per stack [K, ...], what is kept), and how many roots failed on all devices.
    """
    kept = renew_statistics(config, traced, grad_blocks, kept)
    if config.update_every == config.phases:
        roots, failed = renew(config, stacks, traced, kept)
    else:
        # Only roots come out of the branch: what does is copied.
        roots, failed = lax.cond(
            traced.step % config.update_every == 0,
            lambda kept: renew(config, stacks, traced, kept),
            lambda kept: ([b.roots for b in kept], jnp.zeros([], jnp.int32)),
            kept,
        )
    kept = [b._replace(roots=r) for b, r in zip(kept, roots, strict=True)]
    directions = precondition_all(config, traced, to_precondition, kept)
    return (directions, tuple(kept)), sharding.total(failed)


def renew_statistics(
    config: Config, traced: Traced, grad_blocks: Sequence[Array], kept: Sequence[Blocks]
) -> list[Blocks]:
    """`statistics` of all blocks."""
    return [
        b._replace(
            statistics=_each_block(lambda g, s: statistics(config, traced, g, s), g, b.statistics)
        )
        for g, b in zip(grad_blocks, kept, strict=True)
    ]


def precondition_all(
    config: Config, traced: Traced, to_precondition: Sequence[Array], kept: Sequence[Blocks]
) -> tuple[Array, ...]:
    """`precondition` of all blocks."""
    return tuple(
        _each_block(lambda m, b: precondition(config, traced, m, b), m, b)
        for m, b in zip(to_precondition, kept, strict=True)
    )


def statistics(config: Config, traced: Traced, g: Array, old: tuple[Array, ...]) -> tuple[Array, ...]:
    """Of one block: per axis [d, d] (or its diagonal [d]) of G with the other axes summed over."""
    keep, take = (1.0, 1.0) if config.accumulate == "sum" else (traced.decay, 1 - traced.decay)
    new = []
    for axis, statistic in enumerate(old):
        new.append(keep * statistic + take * axes.gram(g, axis, diagonal=statistic.ndim == 1))
    return tuple(new)


def precondition(config: Config, traced: Traced, m: Array, kept: Blocks) -> Array:
    """One block, multiplied along each axis by the axis' root."""
    for axis, (statistic, root) in enumerate(zip(*kept, strict=True)):
        if statistic.ndim == 1:
            root_order = config.root_order or 2 * m.ndim
            root = _diagonal_root(statistic, root_order, traced.epsilon, config.relative)
        m = axes.along(root, m, axis)
    return m


class MatrixGroup(NamedTuple):
    """The matrices of one axis of one stack, among all matrices of one size."""

    stack: int
    axis: int
    first: int  # number of its first matrix
    size: int  # how many there are, on all devices
    share: int  # how many a device keeps, with padding
    root_order: int

    def turn(self, device: Array, phase: Array, phases: int) -> tuple[Array, Array]:
        """Which of a device's share are renewed in a phase, and whether that many are: [m], [m]."""
        begin = device * self.share
        index = (phase - self.first - begin) % phases + phases * jnp.arange(-(-self.share // phases))
        return index, (index < self.share) & (begin + index < self.size)


def groups_by_size(
    config: Config, stacks: Sequence[blocks.Stack], kept: Sequence[Blocks]
) -> list[list[MatrixGroup]]:
    """All matrices, those of one size numbered through, whichever stack and axis they are from."""
    sizes: dict[int, list[MatrixGroup]] = {}
    for i, (stack, b) in enumerate(zip(stacks, kept, strict=True)):
        for axis, statistic in enumerate(b.statistics):
            if statistic.ndim == 3:
                groups = sizes.setdefault(statistic.shape[-1], [])
                first = groups[-1].first + groups[-1].size if groups else 0
                root_order = config.root_order or 2 * len(stack.shape)
                groups.append(MatrixGroup(i, axis, first, stack.size, len(statistic), root_order))
    return list(sizes.values())


def renew(
    config: Config, stacks: Sequence[blocks.Stack], traced: Traced, kept: Sequence[Blocks]
) -> tuple[list[tuple[Array, ...]], Array]:
    """The roots of each stack, renewed where it is their turn and they pass; and how many did not.

    The matrix with number n is renewed in phase n % phases, however many devices there are. All of one
    size are one batch.
    """
    roots = [list(b.roots) for b in kept]
    phases, phase, device = config.phases, traced.step % config.phases, sharding.device()
    failures = jnp.zeros([], jnp.int32)
    for groups in groups_by_size(config, stacks, kept):
        turns = [m.turn(device, phase, phases) for m in groups]
        found = [
            kept[m.stack].statistics[m.axis].at[index].get(mode="clip")
            for m, (index, _) in zip(groups, turns, strict=True)
        ]
        powers = [
            jnp.full(len(index), m.root_order) for m, (index, _) in zip(groups, turns, strict=True)
        ]
        due = jnp.concatenate([d for _, d in turns])
        new, residuals = inverse_roots(
            jnp.concatenate(found),
            jnp.concatenate(powers),
            due,
            traced.epsilon,
            relative=config.relative,
            method=config.method,
        )
        passed = due & (residuals <= TOLERANCE)
        failures += jnp.sum(due & ~passed)
        first = 0
        for m, (index, _) in zip(groups, turns, strict=True):
            part = slice(first, first + len(index))
            first += len(index)
            target = jnp.where(passed[part], index, m.share)
            root = roots[m.stack][m.axis]
            roots[m.stack][m.axis] = root.at[target].set(new[part], mode="drop")
    return [tuple(r) for r in roots], failures


def _average(decay: float | None, grads: Any, old: Any, count: Array) -> tuple[Any, Any]:
    """The averaged gradient, and the same debiased; without a decay, none and the gradient."""
    if decay is None:
        return None, grads
    new = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, old, grads)
    return new, jax.tree.map(lambda m: m / (1 - decay**count), new)


def _diagonal_root(statistic: Array, root_order: int, epsilon: Array, relative: bool) -> Array:
    """(s + r)^(-1/p) of a diagonal [d]; 1 where that is of nothing."""
    ridged = statistic + (epsilon * jnp.max(statistic) if relative else epsilon)
    return jnp.where(jnp.max(ridged) > 0, ridged, 1.0) ** (-1 / root_order)


def _each_block(f: Callable[..., Any], *arguments: Any) -> Any:
    """f over the leading axes: as a batch, or one block after the other where there are many on CPU.

    XLA's batched products of many small matrices are slow there: 512 of 128 run at 48 GFLOP/s, in a
    loop at 70; of 6 the batch is as fast, and of vectors faster.
    """
    batch = jax.vmap(f)
    if len(jax.tree.leaves(arguments)[0]) < 16:
        return batch(*arguments)
    return lax.platform_dependent(
        *arguments, cpu=lambda *a: lax.map(lambda x: f(*x), a), default=lambda *a: batch(*a)
    )


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: Shampoo takes one of {', '.join(allowed)}")


def direction(
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    shampoo_b2: float = 0.95,
    interval: int = 20,
    stagger: bool = True,
    block: int = 128,
    ridge: float = 1e-6,
    power: int = 0,
    graft: str = "adam",
    start: int = 0,
) -> optax.GradientTransformation:
    """The averaged gradient, preconditioned per axis and block, as long as Adam's direction."""
    return scale_by_shampoo(
        b1,
        b2,
        shampoo_b2,
        interval=interval,
        stagger=stagger,
        block=block,
        ridge=ridge,
        power=power,
        graft=graft,
        start=start,
    )


def diagnostics(opt_state: Any) -> dict[str, Array]:
    """How the roots fare: how many failed so far, and how badly conditioned the statistics are.

    Args:
      opt_state: of `build`, whose ridge is relative.

    Returns:
      failed_roots: roots that failed their check, since the first step.
      condition_number: the largest of a statistic with its ridge; at most 1 + 1 / ridge.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, ShampooState))
    (state,) = [leaf for leaf in leaves if isinstance(leaf, ShampooState)]
    by_size: dict[tuple[int, ...], list[Array]] = {}
    for statistic in (s for b in sharding.whole(state.blocks) for s in b.statistics):
        by_size.setdefault(statistic.shape[1:], []).append(statistic)
    found = []
    for size, statistics_of_size in by_size.items():
        stack = jnp.concatenate(statistics_of_size)
        of_each = condition_numbers if len(size) == 2 else _diagonal_condition_numbers
        found.append(jnp.max(of_each(stack, state.ridge)))
    return {
        "failed_roots": state.failures,
        "condition_number": jnp.max(jnp.stack([jnp.float32(1), *found])),
    }


def _diagonal_condition_numbers(diagonals: Array, ridge: Array) -> Array:
    """Of diagonals [k, d], with a relative ridge: [k]."""
    most, least = jnp.max(diagonals, 1), jnp.min(diagonals, 1)
    return jnp.where(most > 0, (1 + ridge) / (least / jnp.where(most > 0, most, 1.0) + ridge), 1.0)


build = in_recipe(direction, learning_rate=0.0195, weight_decay=5.5e-06)

SPEC = Spec(
    name="shampoo",
    build=build,
    space={"learning_rate": Range(1e-3, 1e-1), "weight_decay": WEIGHT_DECAY},
    bounds=bounds(build, power=Bounds(0)),
    reference=(
        "Gupta, Koren and Singer 2018 (arXiv 1802.09568), with averages instead of sums; blocks, "
        "grafting, roots at an interval and their check as in Anil et al. 2020 (arXiv 2002.09018); "
        "momentum before the preconditioner, Adam's length: as in Shi et al. 2023 (arXiv 2309.06497). "
        "Ours: roots staggered over the steps, the graft's direction until all have been computed. On "
        "accelerators a ridge below 1e-6 is 1e-6: roots are computed in float32 there. `start` with "
        "momentum after the preconditioner is not Google's, which has a second momentum for the switch."
    ),
    diagnostics=diagnostics,
)
