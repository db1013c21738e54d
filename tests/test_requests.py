"""Malformed requests of every command: one line, status 2, and nothing is written.

The command lines are generated: of each command all its options with bad values, abbreviated, without
their value, as flags with one, beside what excludes them; and words that belong nowhere.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis import report
from benchmarks import (
    __main__ as funmatch,
)
from benchmarks import (
    make_teacher,
    optimizer_cost,
    overhead,
    prepare,
    race,
    run,
    study,
    sweep,
    throughput,
)
from testbed.cli import serve
from testbed.training import alone, batch
from tests.test_analysis import SLOW, write

ODD = ["", "a\nb", "\x1b[31mred", "\udcff\udcfe", "y" * 5000]  # as no value can be
NUMBERS = [*ODD, "-1", "1.5", "x", "1e3", "²", "٣", " 3", "0x10", "9" * 5000, "2147483648", "nan"]
COUNTS = [*NUMBERS, "0", "10001", "2147483647"]
NAMES = [*ODD, "no-such", "é" * 300]
FILES = [*ODD, "nowhere", "pipe", "folder", "/dev/zero", "z" * 300, "nowhere/x"]
MODULES = [*NAMES, *(f"{name}.py" for name in ("nowhere", "pipe", "folder", "z" * 300)), "./pipe"]
FOLDERS = [*ODD, "a file/below", "a file", "/proc/nowhere", "z" * 300]
TASK = {
    "--task": MODULES,
    "--horizon": NAMES,
    "--steps": [*NUMBERS, "0"],
    "--lessons-from": NAMES,
    "--precision": [*ODD, "float16"],
    "--devices": [*COUNTS],
    "--hosts": [*ODD, "nowhere", ":1", "here:port"],
    "--processes": [*COUNTS, "2"],
    "--process": [*NUMBERS, "0"],
}
OPTIMIZER = [*MODULES, "optax.no_such", "no.module:build", "testbed:", ":", "optax."]
VALUES = [*ODD, "learning_rate", "learning_rate=", "=1", "no_such=1", "sgd.momentum=1", "b1=2"]

Options = dict[str, list[str]]
# Command -> what a valid request consists of, bad values of its options, its flags.
COMMANDS: dict[object, tuple[list[str], Options, list[str]]] = {
    run: (
        ["--opt", "adam"],
        TASK
        | {"--protocol": NAMES, "--opt": OPTIMIZER, "--seed": NUMBERS, "--seeds": COUNTS}
        | {"--lesson-seed": NUMBERS, "--hp": VALUES, "--init": FILES, "--out": FOLDERS}
        | {"--diagnose": [*NAMES, "grad_norm,", ",,"], "--log": [*ODD, "csv"]},
        ["--fresh", "--fresh-head", "--save-params", "--list", "--debug"],
    ),
    sweep: (
        ["--opt", "adam"],
        TASK
        | {"--protocol": NAMES, "--opt": OPTIMIZER, "--trials": COUNTS, "--seeds": COUNTS}
        | {"--studies": COUNTS, "--out": FOLDERS, "--log": [*ODD, "csv"], "--ruleset": [*ODD, "best"]}
        | {"--batch": [*NUMBERS, "0"], "--engine": [*ODD, "dask"], "--workers": [*COUNTS, "2"]}
        | {"--address": [*ODD, "here:1"]},
        ["--halving", "--own-lessons", "--no-batch", "--debug"],
    ),
    race: (
        ["--opt", "adam", "--opt", "sgd"],
        TASK
        | {"--protocol": NAMES, "--opt": OPTIMIZER, "--seeds": COUNTS, "--hp": VALUES}
        | {"--out": FOLDERS, "--report": FOLDERS},
        ["--fresh", "--debug"],
    ),
    study: (
        ["consistency"],
        TASK | {"--opt": OPTIMIZER, "--seeds": COUNTS, "--out": FOLDERS, "--report": FOLDERS},
        ["--debug"],
    ),
    prepare: (
        ["--task", "digits"],
        {"--task": MODULES, "--protocol": NAMES, "--precision": [*ODD, "float16"]},
        ["--fetch", "--check", "--debug"],
    ),
    throughput: (
        ["--task", "flowers"],
        {name: values for name, values in TASK.items() if name != "--devices"}
        | {"--opt": OPTIMIZER, "--batch": [*NUMBERS, "0", "2000000000"], "--rounds": COUNTS}
        | {"--images": COUNTS, "--workers": [*NUMBERS, "1025"], "--out": FOLDERS},
        ["--data", "--debug"],
    ),
    overhead: (
        [],
        {"--task": [*NAMES, "flowers"], "--opt": OPTIMIZER, "--steps": [*NUMBERS, "0"]}
        | {"--rounds": COUNTS},
        ["--batched", "--debug"],
    ),
    optimizer_cost: (
        [],
        {"--opt": OPTIMIZER, "--shapes": NAMES, "--rounds": COUNTS, "--out": FOLDERS},
        ["--debug"],
    ),
    make_teacher: ([], {"--task": [*NAMES, "flowers"]}, ["--debug"]),
    report: (
        ["records"],
        {"--out": FOLDERS, "--baseline": NAMES},
        ["--debug"],
    ),
}
# Requests of which each part is fine.
TOGETHER: dict[object, list[list[str]]] = {
    run: [
        *([], ["--opt", "adam", "--seed", "0", "--seeds", "2"]),
        ["--opt", "adam", "--horizon", "short", "--steps", "5"],
        ["--opt", "adam", "--fresh-head"],
        ["adam"],
    ],
    sweep: [
        *([], ["--trials", "2"], ["--opt", "adam", "--opt", "adam"]),
        ["--opt", "adam", "--ruleset", "self", "--trials", "2"],
        ["--opt", "adam", "--ruleset", "external", "--halving"],
        ["--opt", "optax.lion"],
    ],
    race: [
        [],
        ["--opt", "adam"],
        ["--opt", "adam", "--opt", "sgd", "--horizon", "short", "--steps", "5"],
    ],
    study: [[], [""], ["patience"], ["consistency", "consistency"]],
    prepare: [[], ["digits"]],
    report: [
        *([], [""], ["nowhere"], ["pipe"], ["folder"], ["records", "records"], ["a file"]),
        *(["records", "--compare", "records", "records"], ["--compare", "records"]),
        *(["--compare", "records", "nowhere"], ["--compare", "", "records"], ["\udcff"], ["z" * 300]),
    ],
    funmatch: [
        [word, *more] for word in (*NAMES, "RUN", "run ", "-x", "--versio") for more in ([], ["x"])
    ],
}


def lines_of(command: object) -> Iterator[list[str]]:
    """All malformed requests of a command."""
    yield from TOGETHER.get(command, [])
    valid, options, flags = COMMANDS.get(command, ([], {}, []))
    if not options:
        return
    for option, values in options.items():
        for value in values:
            yield [*valid, f"{option}={value}"]
        yield [*valid, option]
        if option[:-1] not in options:
            yield [*valid, option[:-1], values[-1]]
    for flag in flags:
        yield [*valid, f"{flag}=1"]
        yield [*valid, flag[:-1]]
    for unknown in ("--nonsense", "--Opt=adam", "-z", "more words", "", "--\x1b[31m", "--" + "n" * 5000):
        yield [*valid, unknown]


def test_there_are_hundreds_of_lines():
    assert sum(1 for command in [*COMMANDS, funmatch] for _ in lines_of(command)) >= 400


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a path may lead to, where whatever is accepted fails at once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "pipe.py"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder.py").mkdir()
    write(tmp_path / "records", "adam", 0, SLOW)

    def accepted(*_: object, **__: object) -> None:
        raise RuntimeError("this was accepted")

    monkeypatch.setattr(alone, "Alone", accepted)
    monkeypatch.setattr(batch, "_run", accepted)
    monkeypatch.setattr(throughput, "Measured", accepted)
    monkeypatch.setattr(throughput, "measure_data", accepted)
    monkeypatch.setattr(overhead, "launch", accepted)
    monkeypatch.setattr(overhead, "timed_trial", accepted)
    monkeypatch.setattr(optimizer_cost, "make_inputs", accepted)
    monkeypatch.setattr(make_teacher, "train", accepted)
    monkeypatch.setattr(prepare, "open_problem", accepted)
    monkeypatch.setattr(report, "_write", accepted)
    monkeypatch.setattr(race, "run_race", accepted)
    return tmp_path


@pytest.mark.parametrize("module", [*COMMANDS, funmatch], ids=lambda module: module.__name__)
def test_a_malformed_request_is_one_line_and_nothing_is_written(place, module, capfd, monkeypatch):
    main = module.describe if module is funmatch else module.main
    before = sorted(place.rglob("*"))
    wrong = []
    for words in lines_of(module):
        monkeypatch.setattr(sys, "argv", ["command.py", *words])
        with pytest.raises(SystemExit) as end:
            serve(main)
        stdout, stderr = capfd.readouterr()
        shown = stderr.startswith("command.py: ") and stderr.endswith("\n") and stderr[:-1].isprintable()
        left = [path for path in sorted(place.rglob("*")) if path not in before]
        if (end.value.code, stdout, shown, left) != (2, "", True, []) or len(stderr) > 1100:
            shorter = [word[:60] for word in words]
            wrong.append((shorter, end.value.code, stdout[-200:], stderr[:300], left))
            for path in left[::-1]:
                path.rmdir() if path.is_dir() else path.unlink()
    assert not wrong, f"{len(wrong)} of {len(list(lines_of(module)))}:\n" + "\n".join(map(repr, wrong))
