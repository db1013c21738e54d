"""Mutations of real records and checkpoints, and states of any kind: none is fatal, none is believed."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import frames
from testbed import records
from testbed.errors import Notice
from testbed.training import rows
from testbed.training.checkpoints import Checkpoints
from tests.trials import finish, trial_of

Change = Callable[[bytes], bytes]

GARBAGE = [
    b"garbage",
    b"\xff\xfe\x00",
    b"{}",
    b"[]",
    b"null",
    b'"kind"',
    b'{"kind": []}',
    b'{"kind": "header"}',
    b'{"kind": "header", "schema": 1}',
    b'{"kind": "measurement", "step": true}',
    b'{"kind": "measurement", "step": -1}',
    b'{"kind": "end"}',
    b'{"kind": "end", "status": "finished", "step": "x"}',
    b'{"kind": "end", "status": ["finished"]}',
    b'{"kind": "header", "schema": 1, "x": "\\ud800"}',
    b'{"kind": "measurement", "step": 1' + b"0" * 300 + b"}",
    b'{"kind": "measurement", "step": ' + b"9" * 5000 + b"}",
    b'{"kind": "measurement", "step": 4, "validation_kl": 1e999}',
    b'{"kind": "measurement", "step": 4, "validation_kl": {"a": NaN}}',
    b"[" * 100_000,
    b'{"kind": "header", "schema": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"kind": "end", "x": ' * 2000 + b"1" + b"}" * 2000,
]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _replaced(content: bytes, line: int, key: int, value: Any) -> bytes:
    """With another value in one field of one row."""
    lines = content.split(b"\n")
    try:
        row = json.loads(lines[line % len(lines)])
        row[list(row)[key % len(row)]] = value
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RecursionError, KeyError):
        return content
    lines[line % len(lines)] = json.dumps(row).encode()
    return b"\n".join(lines)


def _put(content: bytes, at: int, new: bytes, over: int = 0) -> bytes:
    at %= len(content) + 1
    return content[:at] + new + content[at + over :]


def _flip(content: bytes, at: int, bits: int) -> bytes:
    at %= len(content) or 1
    return _put(content, at, bytes([content[at] ^ bits]), 1) if content else content


def _line(content: bytes, at: int, new: bytes) -> bytes:
    lines = content.split(b"\n")
    return b"\n".join([*lines[: at % len(lines)], new, *lines[at % len(lines) :]])


AT, SIZE = st.integers(0, 2**20), st.integers(1, 700)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(lambda at, bits: lambda c: _flip(c, at, bits), AT, st.integers(1, 255)),
    st.builds(lambda at: lambda c: c[: at % (len(c) + 1)], AT),
    st.builds(lambda at: lambda c: c[at % (len(c) + 1) :], AT),
    st.builds(lambda at, n: lambda c: _put(c, at, bytes(n), n), AT, SIZE),
    st.builds(lambda at, n: lambda c: _put(c, at, b"", n), AT, SIZE),
    st.builds(lambda at, to, n: lambda c: _put(c, to, c[at % (len(c) + 1) :][:n]), AT, AT, SIZE),
    st.builds(lambda at, new: lambda c: _put(c, at, new), AT, st.binary(max_size=20)),
    st.builds(lambda at, new: lambda c: _line(c, at, new), AT, st.sampled_from(GARBAGE)),
    st.builds(lambda at, key, value: lambda c: _replaced(c, at, key, value), AT, AT, VALUES),
)  # fmt: skip
MUTATIONS = st.lists(CHANGES, min_size=1, max_size=4)


def mutated(content: bytes, changes: list[Change]) -> bytes:
    for change in changes:
        content = change(content)
    return content


@pytest.fixture(scope="module")
def content(tiny, tmp_path_factory) -> bytes:
    """A real record."""
    return finish(trial_of(tiny), tmp_path_factory.mktemp("whole")).path.read_bytes()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "tiny" / "adam" / "x.jsonl"


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@given(changes=MUTATIONS)
def test_no_mutation_of_a_record_raises_in_its_readers(content, path, changes):
    put(path, mutated(content, changes))
    record = records.read(path)
    last = records.last_row(path)
    assert last is None or "kind" in last
    assert isinstance(records.fault(path), str)
    if records.is_finished(path):
        assert records.fault(path) == ""
        assert not record.errors
        assert record.header["target"]["metric"]
        records.first_reaching(record.measurements, record.header["target"])


@given(changes=MUTATIONS)
def test_no_mutation_of_a_record_raises_in_the_analysis(content, path, changes):
    put(path, mutated(content, changes))
    found = frames.read(path.parents[1])
    assert len(found.runs) in (0, 1)


@given(changes=MUTATIONS, share=st.floats(0, 1))
def test_a_mutated_record_is_continued_only_from_what_was_written(content, path, changes, share):
    """Up to its checkpoint it is what it was, or nothing of it is used."""
    lines = content.splitlines(keepends=True)
    kept = b"".join(lines[: 1 + int(share * (len(lines) - 1))])
    put(path, mutated(content, changes))
    writer = rows.RecordWriter(path)
    written = {"length": len(kept), "sha256": rows.hashlib.sha256(kept).hexdigest()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        if writer.fits(written):
            writer.resume(written)
            before = kept
        else:
            writer.start_over()
            before = b""
    row = {"kind": "measurement", "step": 7}
    writer.append(row)
    assert path.read_bytes() == before + records.encode(row)


@given(changes=MUTATIONS)
def test_a_mutated_checkpoint_is_what_was_saved_or_nothing(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("checkpoint") / "x.checkpoint"
    state, meta = {"a": jnp.arange(7.0), "key": jax.random.key(3)}, {"length": 7}
    Checkpoints(folder).save(state, meta)
    (file,) = folder.rglob("host-0")
    file.write_bytes(mutated(file.read_bytes(), changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        restored = Checkpoints(folder).restore(state)
    if restored is not None:
        np.testing.assert_array_equal(restored[0]["a"], state["a"])
        assert restored[1] == meta


NAMES = (
    *("bool_", "int2", "int4", "int8", "int16", "int32", "uint2", "uint4", "uint8", "uint16", "uint32"),
    *("float4_e2m1fn", "float8_e3m4", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"),
    *("bfloat16", "float16", "float32", "complex64"),
)
DTYPES = [np.dtype(getattr(jnp, name)) for name in NAMES if hasattr(jnp, name)]
BITS = {"bool": 1, "int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}


@st.composite
def leaves(draw: Any) -> jax.Array:
    """An array of any kind, of any bits."""
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    kind = draw(st.sampled_from([*DTYPES, "threefry2x32", "rbg"]))
    seed = draw(st.integers(0, 2**31 - 1))
    if isinstance(kind, str):
        return jax.random.split(jax.random.key(seed, impl=kind), shape or 1).reshape(shape)
    count = int(np.prod(shape)) * kind.itemsize
    bits = 2 ** BITS.get(kind.name, 8)
    drawn = np.random.default_rng(seed).integers(0, bits, count).astype(np.uint8)
    return jnp.asarray(drawn.view(kind).reshape(shape))


TREES = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.none(),
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


def bits_of(leaf: jax.Array) -> bytes:
    raw = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(raw).tobytes()


@given(state=TREES)
def test_a_state_of_any_kind_is_restored_bit_by_bit(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state") / "x.checkpoint"
    Checkpoints(folder).save(state, {})
    restored = Checkpoints(folder).restore(jax.tree.map(lambda leaf: leaf, state))
    assert restored is not None
    assert jax.tree.structure(restored[0]) == jax.tree.structure(state)
    for ours, theirs in zip(jax.tree.leaves(restored[0]), jax.tree.leaves(state), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert bits_of(ours) == bits_of(theirs)
