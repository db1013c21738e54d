"""A full disk: what was written stays valid, one line says what happened, and with room a trial goes on.

Full is a file system of its own, where one may be mounted, and a limit on the size of files.
"""

import os
import resource
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import loggers
from testbed import records
from testbed.errors import Notice, RequestError
from testbed.training import alone, batch, checkpoints, loop
from tests.trials import finish, trial_of, without_times

PAGE = 4096


class Disk(NamedTuple):
    folder: Path
    full: Callable[[int], AbstractContextManager[None]]  # inside, so many bytes are left


@contextmanager
def _limited(left: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["limit", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "limit":
        yield Disk(tmp_path, _limited)
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")

    @contextmanager
    def filled(left: int) -> Iterator[None]:
        found = os.statvfs(folder)
        filler = folder / "filler"
        filler.write_bytes(bytes(found.f_bavail * found.f_frsize - left // PAGE * PAGE))
        try:
            yield
        finally:
            filler.unlink()

    try:
        yield Disk(folder, filled)
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr(loop, "DISPATCH", 0.0)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    return finish(trial_of(tiny), tmp_path_factory.mktemp("whole"))


@pytest.mark.usefixtures("often")
def test_a_checkpoint_that_does_not_fit_is_said_once_and_ends_no_trial(disk, tiny, whole):
    with disk.full(3 * PAGE), pytest.warns(Notice) as said:
        record = finish(trial_of(tiny), disk.folder)
    assert len(said) == 1
    assert "cannot be written (" in str(said[0].message)
    assert "it needs 0." in str(said[0].message)
    assert str(disk.folder) in str(said[0].message)
    assert without_times(record) == without_times(whole)


@pytest.mark.usefixtures("often")
def test_a_trial_that_is_interrupted_on_a_full_disk_goes_on_from_what_it_had(disk, tiny, whole):
    trial = trial_of(tiny)
    progress = alone.iterate(trial, disk.folder)
    for at in progress:
        if at.step == 6:
            break
    with disk.full(0), warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # if there is no room even without the older checkpoint
        progress.close()
    record = finish(trial, disk.folder)
    assert record.end["resumed"] > 0
    assert without_times(record) == without_times(whole)


@pytest.mark.usefixtures("often")
def test_a_row_that_does_not_fit_leaves_a_valid_record_and_is_written_later(disk, tiny, whole):
    trial = trial_of(tiny)
    path = trial.record_path(disk.folder)
    with (
        disk.full(PAGE),
        pytest.warns(Notice, match="checkpoint"),
        pytest.raises(records.NotWritten, match=r"cannot be written \(.*the same command resumes"),
    ):
        finish(trial, disk.folder)
    assert path.read_bytes().endswith(b"\n")
    found = records.read(path)
    assert not found.errors
    assert found.measurements
    assert found.end is None
    assert without_times(finish(trial, disk.folder)) == without_times(whole)


def test_without_room_for_a_header_there_is_no_record(disk, tiny, whole):
    trial = trial_of(tiny)
    with disk.full(0), pytest.raises(RequestError, match="cannot be written"):
        finish(trial, disk.folder)
    assert not [path for path in disk.folder.rglob("*") if path.is_file() and path.name != "filler"]
    assert without_times(finish(trial, disk.folder)) == without_times(whole)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("left", [0, PAGE, 6 * PAGE])
def test_a_batch_on_a_full_disk_is_not_taken_for_too_large_and_goes_on_later(disk, tiny, tmp_path, left):
    trials = [trial_of(tiny, learning_rate=rate) for rate in (0.01, 0.02)]
    list(batch.iterate_batch(trials, tmp_path / "whole"))
    with disk.full(left), warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # of checkpoints
        try:
            list(batch.iterate_batch(trials, disk.folder))
        except records.NotWritten:
            assert left <= PAGE
    list(batch.iterate_batch(trials, disk.folder))
    for trial in trials:
        found, other = (records.read(trial.record_path(f)) for f in (disk.folder, tmp_path / "whole"))
        assert without_times(found) == without_times(other)


# Its file, which cannot be flushed, is left to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_logger_on_a_full_disk_is_given_up_in_one_line(disk, whole, capsys):
    log = loggers.choose(["tensorboard"], disk.folder)
    with disk.full(0):
        log.send([whole.path])
    assert capsys.readouterr().err.count("\n") == 1
    log = loggers.choose(["tensorboard"], disk.folder)
    log.send([whole.path])
    assert capsys.readouterr().err == ""
    assert list(disk.folder.rglob("*tfevents*"))
