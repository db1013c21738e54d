"""Parameters cut into blocks, and the blocks of one shape stacked, whichever layer they are from.

A step of a block-wise preconditioner is then a few batched products instead of hundreds of small
ones, and its compile time does not grow with depth. For example, with blocks of 128:

    kernel [3, 3, 64, 320]  -> merged [576, 320]
                            -> 8 blocks [128, 128], 4 [128, 64], 2 [64, 128], 1 [64, 64]
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

Shape = tuple[int, ...]


class Region(NamedTuple):
    """A part of a tensor in which all blocks have one shape."""

    leaf: int  # which of the tensors
    start: Shape
    blocks: Shape  # how many along each axis


class Stack(NamedTuple):
    """All blocks of one shape: an array [size, *shape]."""

    shape: Shape
    regions: tuple[Region, ...]

    @property
    def size(self) -> int:
        """Number of blocks."""
        return sum(math.prod(region.blocks) for region in self.regions)


class Layout(NamedTuple):
    """How tensors are cut."""

    shapes: tuple[Shape, ...]  # of the tensors
    merged: tuple[Shape, ...]  # after merging; () for what is not preconditioned
    stacks: tuple[Stack, ...]


def merge(shape: Shape, limit: int, keep_last: bool = True) -> Shape:
    """Merges neighbouring axes, from the left, while their product is at most `limit`.

    Args:
      shape: of a tensor.
      limit: on the length of a merged axis.
      keep_last: leave the last axis alone, the outputs of a layer: a matrix stays a matrix. Without
        this, as in Google's, a small matrix becomes one vector, and is preconditioned by one full
        matrix.

    (3, 3, 16, 32) -> (144, 32); axes of length 1 vanish; () where nothing is left.
    """
    merged = [1]
    for axis, length in enumerate(shape):
        last = keep_last and axis == len(shape) - 1
        if merged[-1] * length <= limit and not last:
            merged[-1] *= length
        else:
            merged.append(length)
    return tuple(length for length in merged if length > 1)


def cut(shapes: Sequence[Shape], block: int, limit: int, longest: int, keep_last: bool = True) -> Layout:
    """The layout of tensors.

    Args:
      shapes: of the tensors.
      block: largest length of a block's axis; the last block of an axis can be shorter.
      limit: of `merge`.
      longest: axes (after merging) that are longer are not cut.
      keep_last: of `merge`.
    """
    merged = tuple(merge(shape, limit, keep_last) for shape in shapes)
    stacks: dict[Shape, list[Region]] = {}
    for leaf, shape in enumerate(merged):
        pieces = [_pieces(length, length if length > longest else block) for length in shape]
        for choice in itertools.product(*pieces) if shape else ():
            start, blocks, lengths = zip(*choice, strict=True)
            stacks.setdefault(lengths, []).append(Region(leaf, start, blocks))
    return Layout(tuple(shapes), merged, tuple(Stack(s, tuple(r)) for s, r in stacks.items()))


def _pieces(length: int, block: int) -> list[tuple[int, int, int]]:
    """(start, how many, of which length): the whole blocks of an axis, then its remainder."""
    whole, rest = divmod(length, block)
    pieces = [(0, whole, block), (whole * block, 1, rest)]
    return [piece for piece in pieces if piece[1] * piece[2]]


def gather(leaves: Sequence[Array], layout: Layout) -> tuple[Array, ...]:
    """The stacks [size, *shape] of tensors."""
    return tuple(
        jnp.concatenate(
            [
                _blocks_of(leaves[r.leaf].reshape(layout.merged[r.leaf]), r, stack.shape)
                for r in stack.regions
            ]
        )
        for stack in layout.stacks
    )


def scatter(stacks: Sequence[Array], leaves: Sequence[Array], layout: Layout) -> list[Array]:
    """The inverse of `gather`; tensors that are in no stack are taken from `leaves`."""
    pieces: dict[int, list[tuple[Region, Array]]] = {}
    for stack, array in zip(layout.stacks, stacks, strict=True):
        first = 0
        for region in stack.regions:
            count = math.prod(region.blocks)
            part = _region_of(array[first : first + count], region, stack.shape)
            pieces.setdefault(region.leaf, []).append((region, part))
            first += count
    return [
        _assemble(pieces[i]).reshape(layout.shapes[i]) if i in pieces else leaf
        for i, leaf in enumerate(leaves)
    ]


def _blocks_of(tensor: Array, region: Region, shape: Shape) -> Array:
    """[d1, d2] -> [q1 * q2, b1, b2], where the region is q1 by q2 blocks of b1 by b2."""
    rank = len(shape)
    ends = [s + q * b for s, q, b in zip(region.start, region.blocks, shape, strict=True)]
    part = lax.slice(tensor, region.start, ends)
    split = part.reshape([n for pair in zip(region.blocks, shape, strict=True) for n in pair])
    return split.transpose(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)).reshape(-1, *shape)


def _region_of(array: Array, region: Region, shape: Shape) -> Array:
    """[q1 * q2, b1, b2] -> [q1 * b1, q2 * b2]."""
    rank = len(shape)
    split = array.reshape(*region.blocks, *shape)
    order = [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair]
    return split.transpose(order).reshape([q * b for q, b in zip(region.blocks, shape, strict=True)])


def _assemble(pieces: list[tuple[Region, Array]]) -> Array:
    """Puts the regions of one tensor together: along the last axis, then along the one before, ..."""
    parts = {region.start: part for region, part in pieces}
    for axis in reversed(range(len(pieces[0][0].start))):
        rows: dict[Shape, list[Array]] = {}
        for start in sorted(parts):
            rows.setdefault(start[:axis], []).append(parts[start])
        parts = {start: jnp.concatenate(row, axis) for start, row in rows.items()}
    return parts[()]
