"""Records and checkpoints: nothing is lost, nothing damaged is fatal."""

import fcntl
import json
import os
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from testbed import records
from testbed.errors import Notice, RequestError
from testbed.training import checkpoints, clock
from testbed.training.checkpoints import Checkpoints

HEADER = {"kind": "header", "schema": records.SCHEMA, "run_id": "x"}


def measurement(step, **scores):
    return {"kind": "measurement", "step": step, **scores}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    length = records.append(path, HEADER, measurement(0, kl=1.5), at=0)
    length = records.append(path, measurement(10, kl=float("nan")), at=length)
    records.append(path, {"kind": "end", "status": "finished"}, at=length)
    record = records.read(path)
    assert record.header == HEADER
    assert record.measurements == [measurement(0, kl=1.5), measurement(10, kl=None)]
    assert record.end == {"kind": "end", "status": "finished"}
    assert record.errors == []


@pytest.mark.parametrize("what", ["longer", "shorter", "replaced", "removed", "a link"])
def test_a_record_that_something_else_wrote_to_is_not_written_to(tmp_path, what):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    length = records.append(path, HEADER, measurement(0), at=0)
    inode = path.stat().st_ino
    if what == "longer":
        records.append(path, measurement(1), at=length)
    elif what == "shorter":
        os.truncate(path, length - 20)
    elif what == "replaced":
        records.append(path, HEADER, measurement(9), at=0)
    elif what == "removed":
        path.unlink()
    else:
        path.rename(other)
        path.symlink_to(other)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(records.NotWritten, match="the same command"):
        records.append(path, measurement(2), at=length, inode=inode)
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_record_begins_anew_where_there_was_one_and_never_through_a_link(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "other"
    other.write_text("a file of somebody else's")
    path.symlink_to(other)
    records.append(path, HEADER, at=0)
    assert other.read_text() == "a file of somebody else's"
    assert records.read(path).header == HEADER
    records.append(path, HEADER | {"run_id": "y"}, at=0)
    assert records.read(path).header["run_id"] == "y"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "other"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind": "measure',
        b"\xff\xfe",
        b"[1, 2]",
        b"17",
        b'{"kind": "measurement"}',
        b'{"kind": "new"}',
    ],
)
def test_damaged_lines_are_reported_and_skipped(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(records.encode(HEADER) + line + b"\n" + records.encode(measurement(1)))
    record = records.read(path)
    assert record.measurements == [measurement(1)]
    assert [(t.path, t.line) for t in record.errors] == [(path, 2)]


def test_a_record_without_header_or_of_another_schema_is_reported(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(records.encode(HEADER | {"schema": 99}))
    assert [t.reason for t in records.read(path).errors] == ["schema 99, not 1", "no header"]
    assert records.read(tmp_path / "none.jsonl").errors[0].line == 0


def test_first_reaching_a_target():
    rows = [
        measurement(0, kl=None),
        measurement(1, kl=3.0),
        measurement(2, kl=1.0),
        measurement(3, kl=0.5),
    ]
    below = {"metric": "kl", "value": 1.0, "mode": "min"}
    assert records.first_reaching(rows, below) == rows[2]
    assert records.first_reaching(rows, below | {"mode": "max"}) == rows[1]
    assert records.first_reaching(rows, below | {"value": 0.1}) is None
    assert records.first_reaching(rows, below | {"metric": "other"}) is None


def test_run_id_depends_on_values_not_on_order():
    assert records.run_id({"a": 1, "b": 2}) == records.run_id({"b": 2, "a": 1})
    assert records.run_id({"a": 1}) != records.run_id({"a": 2})


def test_a_folder_that_cannot_be_written_is_refused_and_a_lock_is_released(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(RequestError, match=r"--out: cannot write .*file"),
        records.lock(tmp_path / "file" / "a.jsonl"),
    ):
        pass
    path = tmp_path / "a.jsonl"
    for _ in range(2):
        with (
            records.lock(path),
            pytest.raises(RequestError, match="another process"),
            records.lock(path),
        ):
            pass
    assert list(tmp_path.glob("*.lock")) == []


def test_a_lock_on_a_file_that_its_holder_removed_excludes_no_process_and_is_not_taken(
    tmp_path, monkeypatch
):
    """Opened by this process, then removed by the holder that ends, then recreated by a third."""
    path, flock, third = tmp_path / "a.jsonl", fcntl.flock, []

    def too_late(file, operation):
        if not third:
            path.with_suffix(".lock").unlink()
            third.append(path.with_suffix(".lock").open("wb"))
            flock(third[0], fcntl.LOCK_EX)
        flock(file, operation)

    monkeypatch.setattr(records.fcntl, "flock", too_late)
    with pytest.raises(records.Busy), records.lock(path):
        pass
    assert records.is_held(path)
    third[0].close()
    assert not records.is_held(path)
    with records.lock(path):
        assert records.is_held(path)


def test_the_last_row_is_the_last_whole_one_however_long_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "TAIL", 200)
    path = tmp_path / "a.jsonl"
    assert records.last_row(path) is None
    length = records.append(path, HEADER, *(measurement(i) for i in range(50)), at=0)
    assert records.last_row(path) == measurement(49)
    with path.open("ab") as file:
        file.write(records.encode(measurement(50))[:-5])
    assert records.last_row(path) == measurement(49)
    os.truncate(path, length)
    records.append(path, measurement(51), at=length)
    assert records.last_row(path) == measurement(51)


class State(NamedTuple):
    a: jax.Array
    b: tuple[dict, ...]


def state(fill) -> State:
    return State(
        jnp.full((2, 3), fill, jnp.float32),
        (
            {"key": jax.random.key(fill), "old_key": jax.random.PRNGKey(fill)},
            {"half": jnp.full(4, fill, jnp.bfloat16), "count": jnp.int32(fill), "flag": jnp.bool(fill)},
        ),
    )


def test_checkpoints_restore_every_kind_of_leaf_bit_by_bit(tmp_path):
    kept = Checkpoints(tmp_path / "c")
    kept.save(state(2), {"length": 6})
    kept.save(state(3), {"length": 7})
    kept.close()
    restored, meta = Checkpoints(tmp_path / "c").restore(state(0))
    assert meta == {"length": 7}
    assert jax.tree.structure(restored) == jax.tree.structure(state(3))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state(3)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(checkpoints._raw(ours)), checkpoints._raw(theirs))
    for number in range(4, 8):
        kept.save(state(number), {"length": number})
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert len(names) == 2, "the two newest are kept"
    assert all(name.isdigit() for name in names)


def test_what_is_saved_is_the_state_as_it_was_then(tmp_path):
    """The next step may overwrite the arrays while they are still being written."""
    kept = Checkpoints(tmp_path / "c")
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((256, 1024))
    for i in range(3):
        kept.save(x, {"i": i})
        for _ in range(20):
            x = step(x)
    kept.close()
    restored, meta = Checkpoints(tmp_path / "c").restore(x)
    assert meta == {"i": 2}
    np.testing.assert_array_equal(restored, 40)


def test_on_an_accelerator_a_checkpoint_is_written_in_the_background(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.jax, "default_backend", lambda: "gpu")
    kept, threads = Checkpoints(tmp_path / "c"), []
    write = checkpoints._write_file

    def writing(*arguments):
        threads.append(threading.current_thread())
        write(*arguments)

    monkeypatch.setattr(checkpoints, "_write_file", writing)
    for number in range(4):
        assert kept.save(state(number), {"length": number})
    kept.close()
    assert threading.main_thread() not in threads
    assert Checkpoints(tmp_path / "c").restore(state(0))[1] == {"length": 3}
    (tmp_path / "d").touch()
    failing = Checkpoints(tmp_path / "d")
    assert failing.save(state(0), {}), "it is not known yet"
    with pytest.warns(Notice, match="cannot be written"):
        failing.close()
    assert not failing.save(state(0), {}, last=True)
    failing.close()


def test_checkpoints_that_do_not_fit_are_not_loaded(tmp_path):
    kept = Checkpoints(tmp_path / "c")
    assert kept.restore(state(0)) is None
    kept.save(state(3), {})
    kept.close()
    other = state(0)._replace(a=jnp.zeros((5, 5)))
    with pytest.warns(Notice, match=r"\.a was float32\[2, 3\] and is float32\[5, 5\]"):
        assert kept.restore(other) is None
    assert kept.restore(other) is None


def test_a_checkpoint_of_another_program_is_not_loaded(tmp_path):
    kept = Checkpoints(tmp_path / "c")
    kept.save(state(3), {}, program="this one")
    assert kept.restore(state(0)) is not None
    assert kept.restore(state(0), program="this one") is not None
    with pytest.warns(Notice, match="the optimizer computes something else now"):
        assert kept.restore(state(0), program="another") is None


def test_a_ledger_accounts_for_the_wall_time_and_continues():
    import time

    ledger = clock.Ledger()
    for row in clock.ROWS:
        with ledger.on(row):
            time.sleep(0.1)
    rows = ledger.rows()
    assert abs(clock.gap(rows)) < 0.01
    later = clock.Ledger()
    later.resume(rows)
    with later.on("train_s"):
        time.sleep(0.25)
    assert later.train_s == pytest.approx(rows["train_s"] + 0.25, abs=0.05)
    assert abs(clock.gap(later.rows())) < 0.01
    time.sleep(0.25)
    assert clock.gap(later.rows()) > 0.05, "time in no row shows"


def test_encoded_rows_are_strict_json():
    row = {"kind": "measurement", "a": float("inf"), "b": [float("nan"), 1.0], "c": {"d": -float("inf")}}
    decoded = json.loads(records.encode(row), parse_constant=pytest.fail)
    assert decoded == {"kind": "measurement", "a": None, "b": [None, 1.0], "c": {"d": None}}
