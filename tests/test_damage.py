"""What disks and others do to files: nothing damaged is believed, and none of it is fatal."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import optax
import pytest

from optimizers.spec import Spec
from testbed import records
from testbed.errors import Notice, RequestError
from testbed.records import Record
from testbed.training import alone, batch, checkpoints, compile, groups, loop
from testbed.training.trial import Trial
from tests.trials import finish, trial_of, without_times


class Killed(BaseException):
    """Ends a trial as SIGKILL does: nothing else is written."""


class Interrupted(NamedTuple):
    """A trial that was killed after two checkpoints, between which its record grew."""

    trial: Trial
    out: Path
    whole: Record


@pytest.fixture(scope="module")
def interrupted(tiny, tmp_path_factory):
    folder, trial = tmp_path_factory.mktemp("interrupted"), trial_of(tiny)
    whole = finish(trial, folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "DISPATCH", 0.0)  # a step at a time
        patch.setattr(checkpoints, "EVERY", 0.0)
        patch.setattr(checkpoints, "SHARE", 1e9)
        progress = alone.iterate(trial, folder / "out")
        for at in progress:
            if at.step == 8:  # measured
                break
        with pytest.raises(Killed):
            progress.throw(Killed)
    assert len(list((folder / "out").rglob("host-0"))) == 2
    return Interrupted(trial, folder / "out", whole)


@pytest.fixture
def again(interrupted, tmp_path):
    """A copy of it."""
    out = tmp_path / "out"
    shutil.copytree(interrupted.out, out)
    return interrupted._replace(out=out)


def finish_noting(trial: Trial, out: Path) -> tuple[Record, list[str]]:
    """The record of a trial, which this runs to the end; and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        record = finish(trial, out)
    assert {w.category for w in said} <= {Notice}
    return record, [str(w.message) for w in said]


def files(out: Path) -> list[Path]:
    """Those of the checkpoints, the newest first."""
    return sorted(out.rglob("host-0"), key=lambda path: -int(path.parent.name))


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 16
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a byte longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "the folder is a file": lambda path: (shutil.rmtree(path.parent), path.parent.write_text("?")),
    **{
        f"flipped at {share}": lambda path, share=share: flip(path, share) for share in (0, 0.01, 0.5, 1)
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(again, damage):
    newest = files(again.out)[0]
    DAMAGES[damage](newest)
    record, said = finish_noting(again.trial, again.out)
    assert len(said) == 1
    assert "is damaged" in said[0]
    assert "the trial goes on from the one before" in said[0]
    assert record.end["resumed"] == 1
    assert without_times(record) == without_times(again.whole)
    assert record.path.with_suffix(".damaged.checkpoint").exists()
    assert not record.path.with_suffix(".checkpoint").exists()


@pytest.mark.parametrize("damage", ["removed", "halved", "flipped at 0.5"])
def test_with_both_damaged_the_trial_starts_over(again, damage):
    for path in files(again.out):
        DAMAGES[damage](path)
    record, said = finish_noting(again.trial, again.out)
    assert len(said) == 1
    assert "the trial starts over" in said[0]
    assert record.end["resumed"] == 0
    assert without_times(record) == without_times(again.whole)


def test_every_field_of_a_checkpoint_is_checked_even_if_its_checksum_is_right(again):
    for name, value in (("record", 7), ("ledger", {}), ("resumed", "often"), ("measurement", None)):
        out = again.out.with_name(name)
        shutil.copytree(again.out, out)
        for file in files(out):
            line, _, rest = file.read_bytes()[:-32].partition(b"\n")
            about = json.loads(line)
            about["meta"][name] = value
            content = json.dumps(about).encode() + b"\n" + rest
            file.write_bytes(content + checkpoints.hashlib.sha256(content).digest())
        record, said = finish_noting(again.trial, out)
        assert len(said) == 1
        assert without_times(record) == without_times(again.whole)


def edit_header(path: Path) -> None:
    header, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(records.encode(json.loads(header) | {"command": "another"}) + rest)


def zero(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes(300) + content[500:])


RECORD_DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage in front": lambda path: path.write_bytes(b"garbage\n" + path.read_bytes()),
    "garbage in its place": lambda path: path.write_bytes(b"x" * path.stat().st_size),
    "zeros inside": zero,
    "an edited header": edit_header,
    "shortened to its header": lambda path: path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n"),
    "emptied": lambda path: path.write_bytes(b""),
    "flipped": lambda path: flip(path, 0.5),
    "a link": lambda path: (path.rename(path.with_name("it")), path.symlink_to(path.with_name("it"))),
}


@pytest.mark.parametrize("damage", RECORD_DAMAGES)
def test_a_damaged_record_is_set_aside_and_the_trial_starts_over(again, damage):
    path = again.trial.record_path(again.out)
    RECORD_DAMAGES[damage](path)
    before = path.read_bytes()
    record, said = finish_noting(again.trial, again.out)
    assert len(said) == 1
    assert f"set aside as {path.stem}.damaged; the trial starts over" in said[0]
    assert path.with_suffix(".damaged").read_bytes() == before
    assert record.end["resumed"] == 0
    assert not record.errors
    assert without_times(record) == without_times(again.whole)


def test_a_record_that_lost_its_end_goes_on_from_the_checkpoint_before(again):
    """The older checkpoint was saved before the measurement that is lost."""
    path = again.trial.record_path(again.out)
    os.truncate(path, path.stat().st_size - 7)
    record, said = finish_noting(again.trial, again.out)
    assert len(said) == 1
    assert "was cut or changed: it goes on from the checkpoint before that" in said[0]
    assert record.end["resumed"] == 1
    assert without_times(record) == without_times(again.whole)


@pytest.mark.parametrize("after", [b"garbage\n", bytes(100), b'{"kind": "measurem', b"[" * 5000 + b"\n"])
def test_what_follows_in_a_record_after_the_checkpoint_is_dropped(again, after):
    path = again.trial.record_path(again.out)
    path.write_bytes(path.read_bytes() + after)
    record, said = finish_noting(again.trial, again.out)
    assert said == []
    assert record.end["resumed"] > 0
    assert without_times(record) == without_times(again.whole)


def without_lines(*dropped: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        return b"".join(line for i, line in enumerate(lines) if i - len(lines) * (i > 2) not in dropped)

    return change


END_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no header": without_lines(0),
    "end without status": lambda content: content.replace(b'"status": "finished", ', b""),
    "end without step": lambda content: content.replace(b'"finished", "step"', b'"finished", "s"'),
    "garbage": lambda content: b"\xff\xfe\n" + content,
    "no measurement": lambda content: b"".join(
        line for line in content.splitlines(keepends=True) if b'"measurement"' not in line
    ),
    "rows twice": lambda content: content.replace(b"\n", b"\n" + content.split(b"\n")[1] + b"\n", 1),
    "target garbled": lambda content: content.replace(b'"target": {', b'"target": 3, "t": {'),
    "header nested deep": lambda content: b'{"kind": "header", "x": ' + b"[" * 5000 + b"\n" + content,
}  # fmt: skip


@pytest.mark.parametrize("damage", END_DAMAGES)
def test_a_finished_record_that_is_not_whole_is_set_aside_and_made_again(interrupted, tmp_path, damage):
    path = interrupted.trial.record_path(tmp_path)
    path.parent.mkdir(parents=True)
    content = END_DAMAGES[damage](interrupted.whole.path.read_bytes())
    assert content != interrupted.whole.path.read_bytes()
    path.write_bytes(content)
    assert not records.is_finished(path)
    record, said = finish_noting(interrupted.trial, tmp_path)
    assert len(said) == 1
    assert "set aside" in said[0]
    assert without_times(record) == without_times(interrupted.whole)
    assert path.with_suffix(".damaged").read_bytes() == content


def test_a_sleeper_whose_lock_was_deleted_stops_when_it_wakes(interrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "DISPATCH", 0.0)
    trial = interrupted.trial
    lock = trial.record_path(tmp_path).with_suffix(".lock")
    sleeper = alone.iterate(trial, tmp_path)
    next(sleeper)
    lock.unlink()
    record = finish(trial, tmp_path)
    before = record.path.read_bytes()
    with pytest.raises(records.NotWritten, match="something else wrote to it"):
        list(sleeper)
    assert record.path.read_bytes() == before
    assert without_times(record) == without_times(interrupted.whole)


def test_a_sleeper_removes_no_lock_of_another_process(interrupted, tmp_path):
    lock = interrupted.trial.record_path(tmp_path).with_suffix(".lock")
    sleeper = alone.iterate(interrupted.trial, tmp_path)
    next(sleeper)
    lock.unlink()
    other = alone.iterate(interrupted.trial, tmp_path)
    next(other)
    with pytest.raises(records.NotWritten):
        list(sleeper)
    assert records.is_held(interrupted.trial.record_path(tmp_path))
    list(other)
    assert not lock.exists()
    assert records.is_finished(interrupted.trial.record_path(tmp_path))


def test_a_checkpoint_that_cannot_be_written_ends_no_trial(tiny, tmp_path, monkeypatch):
    """A file is in the place of its folder."""
    monkeypatch.setattr(loop, "DISPATCH", 0.0)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    trial = trial_of(tiny)
    whole = finish(trial, tmp_path / "whole")
    place = trial.record_path(tmp_path).with_suffix(".checkpoint")
    place.parent.mkdir(parents=True)
    place.write_text("a file")
    record, said = finish_noting(trial, tmp_path)
    assert len(said) == 1
    assert f"checkpoint {place}: cannot be written" in said[0]
    assert without_times(record) == without_times(whole)


def test_an_interrupt_that_could_save_nothing_says_so(tiny, tmp_path):
    trial = trial_of(tiny)
    place = trial.record_path(tmp_path).with_suffix(".checkpoint")
    place.parent.mkdir(parents=True)
    place.write_text("a file")
    progress = alone.iterate(trial, tmp_path)
    next(progress)
    with pytest.warns(Notice) as said:
        progress.close()
    assert "cannot be written (" in str(said[0].message)
    assert "step 0 could not be saved: the same command goes on from an earlier" in str(said[1].message)


@pytest.mark.parametrize("ended", [0, 1, 3, 4])
def test_a_batch_that_is_killed_while_it_ends_its_records_ends_the_others(
    tiny, tmp_path, monkeypatch, ended
):
    trials = [trial_of(tiny, learning_rate=rate) for rate in (0.01, 0.02, 0.03, 0.04)]
    for _ in batch.iterate_batch(trials, tmp_path / "whole"):
        pass
    out, append, steps = tmp_path / "out", batch.RecordWriters.append, []
    advance = batch.Together.advance

    def appended(self, i, *rows):
        if rows[-1]["kind"] == "end" and i == ended:
            raise Killed
        append(self, i, *rows)

    def killed_at_the_last(self):
        if self._folder.exists():
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(batch.RecordWriters, "append", appended)
        if ended == len(trials):
            patch.setattr(checkpoints.Checkpoints, "delete", killed_at_the_last)
        with pytest.raises(Killed):
            list(batch.iterate_batch(trials, out))
    paths = [trial.record_path(out) for trial in trials]
    before = {path: path.read_bytes() for path in paths if records.is_finished(path)}
    assert len(before) == ended
    assert len(list(out.rglob("*.checkpoint"))) == 1
    monkeypatch.setattr(
        batch.Together, "advance", lambda self, stop: (steps.append(stop), advance(self, stop))
    )
    list(batch.iterate_batch(trials[::-1], out))
    assert steps == [], "no step is made again"
    for path, trial in zip(paths, trials, strict=True):
        assert without_times(records.read(path)) == without_times(
            records.read(trial.record_path(tmp_path / "whole"))
        )
        assert before.get(path, path.read_bytes()) == path.read_bytes()
    assert not list(out.rglob("*.checkpoint"))


def test_a_batch_whose_last_checkpoint_is_damaged_touches_no_record_that_is_whole(
    tiny, tmp_path, monkeypatch
):
    trials = [trial_of(tiny, learning_rate=rate) for rate in (0.01, 0.02, 0.03)]
    append = batch.RecordWriters.append

    def appended(self, i, *rows):
        if rows[-1]["kind"] == "end" and i == 1:
            raise Killed
        append(self, i, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(batch.RecordWriters, "append", appended)
        with pytest.raises(Killed):
            list(batch.iterate_batch(trials, tmp_path))
    (whole,) = [t.record_path(tmp_path) for t in trials if records.is_finished(t.record_path(tmp_path))]
    before = whole.read_bytes()
    for path in tmp_path.rglob("host-0"):
        flip(path, 0.5)
    with pytest.warns(Notice, match="the trial starts over"):
        list(batch.iterate_batch(trials, tmp_path))
    assert whole.read_bytes() == before
    found = [records.read(trial.record_path(tmp_path)) for trial in trials]
    assert len({record.header["batch"]["id"] for record in found}) == 1
    assert all(records.is_finished(record.path) for record in found)


NUMBERS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESTALE, 524]


@pytest.fixture
def no_locks(monkeypatch):
    """A file system whose flock fails with a number."""
    records._say_no_locks.cache_clear()

    def fails(number: int) -> None:
        def flock(file, how):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(records.fcntl, "flock", flock)

    return fails


@pytest.mark.parametrize("number", NUMBERS)
def test_without_locks_a_file_that_names_the_process_locks(tmp_path, no_locks, number):
    no_locks(number)
    path = tmp_path / "a.jsonl"
    with ExitStack() as stack:
        with pytest.warns(Notice, match="its file system has no locks") as said:
            stack.enter_context(records.lock(path))
        assert len(said) == 1
        assert records.is_held(path)
        with pytest.raises(records.Busy, match=r"remove .*a\.owner\.lock"), records.lock(path):
            pass
    assert not records.is_held(path)
    assert list(tmp_path.iterdir()) == []


def test_without_locks_that_of_a_process_which_is_gone_is_taken(tmp_path, no_locks):
    no_locks(errno.ENOLCK)
    path = tmp_path / "a.jsonl"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owned = path.with_suffix(records.OWNED)
    owned.write_text(json.dumps([records.socket.gethostname(), ended.pid]))
    assert not records.is_held(path)
    with pytest.warns(Notice), records.lock(path):
        assert json.loads(owned.read_text())[1] == os.getpid()
    for held in ('["elsewhere", 1]', "", "[1", f'["{records.socket.gethostname()}", {os.getpid()}]'):
        owned.write_text(held)
        assert records.is_held(path)
        with pytest.raises(records.Busy), records.lock(path):
            pass


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path):
    target, path = tmp_path / "precious", tmp_path / "a.jsonl"
    target.write_text("precious")
    path.with_suffix(".lock").symlink_to(target)
    with pytest.raises(RequestError, match="is a symbolic link"), records.lock(path):
        pass
    assert target.read_text() == "precious"


def test_the_content_of_a_lock_file_is_not_touched(tmp_path):
    path = tmp_path / "a.jsonl"
    path.with_suffix(".lock").write_text("somebody's notes")
    other = path.with_suffix(".lock").open("rb")
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(records.Busy), records.lock(path):
        pass
    assert path.with_suffix(".lock").read_text() == "somebody's notes"
    other.close()


PROGRAMS = """
import jax
from testbed import compilation_cache
compilation_cache.enable_cache()
with compilation_cache.counted() as counts:
    for i in range(3):
        assert jax.jit(lambda x: x * i + 7)(2.0) == 2 * i + 7
"""


@pytest.mark.parametrize("damage", ["emptied", "halved", "zeros", "flipped at 0.5", "a folder"])
def test_a_damaged_compilation_cache_is_said_in_one_line(tmp_path, damage):
    def programs() -> str:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAMS],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stderr

    assert "cache" not in programs()
    for path in tmp_path.glob("*-cache"):
        DAMAGES[damage](path)
    said = programs()
    assert said.count("Notice") == said.count("Error reading") == 1
    assert f"compilation cache {tmp_path}: it cannot be used for every program" in said


def scaled(total_steps, *, learning_rate=0.1):
    scale = float(os.environ["_".join(["STEP", "SCALE"])])  # a name that no checksum of source finds
    return optax.sgd(scale * learning_rate)


def in_another_process():
    """Programs are compiled anew."""
    for cache in (compile._compiled, compile.build_once, groups._compile):
        cache.cache_clear()


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("scale", ["1", "2"])
def test_a_checkpoint_of_another_program_is_not_continued(tiny, tmp_path, monkeypatch, batched, scale):
    trials = [trial_of(tiny, Spec("scaled", scaled), learning_rate=rate) for rate in (0.1, 0.2)]

    def run():
        in_another_process()
        return batch.iterate_batch(trials, tmp_path) if batched else alone.iterate(trials[0], tmp_path)

    monkeypatch.setenv("STEP_SCALE", "1")
    monkeypatch.setattr(loop, "DISPATCH", 0.0)
    progress = run()
    for at in progress:
        if at.step == 8:
            break
    progress.close()
    monkeypatch.setenv("STEP_SCALE", scale)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        list(run())
    resumed = {record.end["resumed"] for record in records.read_folder(tmp_path)}
    assert resumed == ({1} if scale == "1" else {0})
    found = [str(w.message) for w in said if "another program" in str(w.message)]
    assert len(found) == (scale != "1")
