"""The commands, as a user meets them."""

import contextlib
import dataclasses
import functools
import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jax
import pytest

import testbed.tasks
from analysis.statistics import summary
from benchmarks import make_teacher, overhead, prepare, race, run, search, study, sweep, throughput
from optimizers import registry
from testbed import records, teachers
from testbed.problem import problem
from testbed.problem.problem import open_problem
from testbed.tasks import TASKS
from testbed.teachers import TEACHERS
from tests import stand_ins
from tests.trials import trial_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tiny_task(tiny, monkeypatch):
    """Registers the tiny task under its name."""
    from types import MappingProxyType

    horizons = MappingProxyType({"short": 20, "medium": 80})
    task = dataclasses.replace(tiny, horizons=horizons)
    for module in (testbed.tasks, run):
        monkeypatch.setattr(module, "TASKS", {**TASKS, "tiny": task})


def test_three_optimizers_race_and_are_reported(command, tiny_task, tmp_path):
    words = ["--task", "tiny", "--opt", "shampoo", "--opt", "adam", "--opt", "sgd", "--seeds", "2"]
    status, stdout, stderr = command(run, *words)
    assert status == 0
    assert stderr == "", "silent in a pipe"
    found = records.read_folder(tmp_path / "runs")
    assert len(found) == 6
    assert all(record.end["status"] == "finished" for record in found)
    table = stdout.splitlines()
    assert table[0].split()[:3] == ["optimizer", "seed", "status"]
    assert len(table) == 1 + 6 + 2
    before = {record.path: record.path.read_bytes() for record in found}
    assert command(run, *words)[0] == 0
    assert before == {path: path.read_bytes() for path in before}, "nothing is run twice"


def test_hyperparameters_of_all_and_of_one(command, tiny_task, tmp_path):
    status, *_ = command(
        run, "--task", "tiny", "--opt", "adam", "--opt", "optax.lion", "--steps", "4",
        "--hp", "learning_rate=0.01", "--hp", "optax.lion.b1=0.5", "--hp", "adam.learning_rate=0.02",
    )  # fmt: skip
    assert status == 0
    by_name = {r.header["optimizer"]: r.header for r in records.read_folder(tmp_path / "runs")}
    assert by_name["adam"]["hyperparameters"]["learning_rate"] == 0.02
    assert by_name["adam"]["hyperparameters"]["b1"] == 0.9
    assert by_name["optax.lion"]["hyperparameters"]["learning_rate"] == 0.01
    assert by_name["optax.lion"]["hyperparameters"]["b1"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--opt", "shampo"],
            "--opt shampo: unknown; did you mean 'shampoo'? Choices: adafactor, adam, ",
        ),
        (["--opt", "nowhere.py"], "no such file"),
        (["--opt", "optax.adamm"], "did you mean optax.adam?"),
        (["--opt", "no.module:build"], "cannot be imported"),
        (["--opt", "without_build.py"], "defines no build"),
        (["--opt", "raises.py"], "importing it raised RuntimeError: two lines"),
        (["--opt", "raises_later.py"], "RuntimeError: not today"),
        (["--opt", "wrong_tree.py"], "update returned nothing at"),
        (["--opt", "no_transformation.py"], "not an optax.GradientTransformation"),
        (["--opt", "adam", "--hp", "learning_rat=1"], "did you mean 'learning_rate'"),
        (["--opt", "adam", "--hp", "learning_rate"], "write NAME=VALUE"),
        (["--opt", "adam", "--hp", "sgd.momentum=0"], "not among the optimizers"),
        (["--opt", "adam", "--hp", "b1=1.5"], "b1 >= 0 and < 1"),
        (
            ["--opt", "adam", "--task", "digit"],
            "--task digit: unknown; did you mean 'digits'? Choices: digits, ",
        ),
        (["--opt", "adam", "--horizon", "shorter"], "did you mean 'short'?"),
        (["--opt", "adam", "--protocol", "fixed"], "did you mean 'fixed_teacher'?"),
        (["--opt", "adam", "--out", "file/runs"], "choose another folder"),
        ([], "name at least one optimizer"),
    ],
)
def test_bad_input_is_one_line_and_status_2(command, tiny_task, tmp_path, words, message):
    (tmp_path / "file").touch()
    for name, text in BAD_FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    task = [] if "--task" in words else ["--task", "tiny"]
    status, stdout, stderr = command(run, *task, *words)
    assert status == 2
    assert message in stderr
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not list(tmp_path.rglob("*.jsonl")), "no record is left half-begun"


OPTAX = "import optax, jax\ndef build(total_steps):\n    "
BAD_FILES = {
    "without_build": "x = 1\n",
    "raises": "raise RuntimeError('two\\nlines')\n",
    "raises_later": f"{OPTAX}raise RuntimeError('not today')\n",
    "wrong_tree": (
        f"{OPTAX}return optax.GradientTransformation(lambda p: (), lambda g, s, p=None: ({{}}, s))\n"
    ),
    "no_transformation": f"{OPTAX}return 3\n",
}


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--steps", "-1"], ["--seed", "x"], ["--nonsense"]])
def test_bad_options_are_status_2(command, words):
    status, _, stderr = command(run, "--opt", "adam", *words)
    assert status == 2
    assert "run.py: error:" in stderr


def test_a_damaged_teacher_is_one_line_and_status_2(command, tmp_path, monkeypatch):
    folder = tmp_path / "teachers"
    shutil.copytree(teachers.FOLDER, folder)
    (folder / "digits-a.npz").write_bytes(b"not what it was")
    load = teachers.load
    monkeypatch.setattr(teachers, "load", lambda teacher: load(teacher, folder))
    monkeypatch.setattr("testbed.problem.problem._open", problem._open.__wrapped__)
    status, _, stderr = command(run, "--opt", "adam")
    assert status == 2
    assert "the file is damaged" in stderr
    assert stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


def test_list_shows_tasks_optimizers_and_ranges(command):
    status, stdout, _ = command(run, "--list")
    assert status == 0
    for name in [*TASKS, *registry.registered(), "function_matching", "learning_rate", "searched"]:
        assert name in stdout


def test_a_sweep_tunes_all_equally_and_runs_the_best_on_fresh_seeds(command, tiny_task, tmp_path):
    status, stdout, _ = command(
        sweep, "--task", "tiny", "--opt", "adam", "--opt", "sgd", "--trials", "3", "--seeds", "2"
    )
    assert status == 0
    tuning = records.read_folder(tmp_path / "runs" / "tuning")
    final = records.read_folder(tmp_path / "runs" / "final")
    assert len(tuning) == 6
    assert len(final) == 8, "the best and the default, on two seeds"
    assert not any(r.header["timed"] for r in tuning + final)
    assert {r.header["seed"] for r in tuning}.isdisjoint({r.header["seed"] for r in final})
    for name in ("adam", "sgd"):
        of_name = [r for r in tuning if r.header["optimizer"] == name]
        best = min(of_name, key=lambda r: r.measurements[-1]["validation_kl"] or float("inf"))
        chosen = {str(r.header["hyperparameters"]) for r in final if r.header["optimizer"] == name}
        default = registry.defaults(registry.find(name))
        assert chosen == {str(best.header["hyperparameters"]), str(default)}
        assert f"{name}: best of 3" in stdout
    assert "medians over seeds" in stdout


def sweep_in(command, folder, *words):
    """The records of a sweep of Adam and SGD on the tiny task, and what it printed."""
    field = ("--task", "tiny", "--opt", "adam", "--opt", "sgd", "--steps", "45")
    status, stdout, stderr = command(sweep, *field, "--out", str(folder), *words)
    assert (status, stderr) == (0, "")
    return records.read_folder(folder), stdout


def test_batched_and_unbatched_sweeps_choose_the_same_and_repeat_nothing(command, tiny_task, tmp_path):
    words = ("--trials", "4", "--seeds", "1")
    batched, stdout = sweep_in(command, tmp_path / "a", *words, "--batch", "3")
    alone, other_stdout = sweep_in(command, tmp_path / "b", *words, "--no-batch")
    assert [line for line in stdout.splitlines() if "best of 4" in line] == [
        line for line in other_stdout.splitlines() if "best of 4" in line
    ]
    for one, other in zip(batched, alone, strict=True):
        assert one.path.relative_to(tmp_path / "a") == other.path.relative_to(tmp_path / "b")
        assert other.header["timed"]
        assert one.header["batch"]["size"] <= 3
    before = [record.path.read_bytes() for record in batched]
    sweep_in(command, tmp_path / "a", *words)
    assert [record.path.read_bytes() for record in batched] == before


def test_halving_runs_fewer_steps_and_reports_how_many(command, tiny_task, tmp_path):
    found, stdout = sweep_in(command, tmp_path, "--trials", "9", "--seeds", "1", "--halving")
    tuning = [r for r in found if "tuning" in r.path.parts and r.header["optimizer"] == "adam"]
    assert Counter(r.header["total_steps"] for r in tuning) == {5: 9, 15: 3, 45: 1}
    # The best third continues.
    ended = sorted(
        (r for r in tuning if r.header["total_steps"] == 5),
        key=lambda r: r.measurements[-1]["validation_kl"],
    )
    better = {str(r.header["hyperparameters"]) for r in ended[:3]}
    assert better == {str(r.header["hyperparameters"]) for r in tuning if r.header["total_steps"] == 15}
    assert "halving: 270 steps instead of 810, 67% saved" in stdout


def test_external_ruleset_takes_the_best_of_each_study(command, tiny_task, tmp_path):
    found, stdout = sweep_in(
        command, tmp_path, "--ruleset", "external", "--studies", "3", "--trials", "2"
    )
    assert Counter((r.header["optimizer"], r.header["seed"]) for r in found) == {
        (name, seed): 2 for name in ("adam", "sgd") for seed in range(3)
    }
    adam = [r for r in found if r.header["optimizer"] == "adam"]
    rates = {r.header["hyperparameters"]["learning_rate"] for r in adam}
    assert len(rates) == len(adam), "each study has points of its own"
    assert "adam: median of 3 studies (best of 2 trials each): " in stdout
    table = [line for line in stdout.splitlines() if line.startswith(("adam ", "sgd "))]
    assert len(table) == 6


def test_self_tuning_runs_the_defaults_three_times_as_long(command, tiny_task, tmp_path):
    found, stdout = sweep_in(command, tmp_path, "--ruleset", "self", "--studies", "2")
    assert len(found) == 4
    assert {r.header["total_steps"] for r in found} == {135}
    for record in found:
        spec = registry.find(record.header["optimizer"])
        assert record.header["hyperparameters"] == registry.defaults(spec)
    assert "adam: median of 2 studies (defaults, 135 steps): " in stdout


def test_the_best_of_a_study_is_the_first_at_the_target(tiny, tmp_path):
    """Then, among those that miss it, the best at the end."""
    curves = {0.1: [0.9, 0.04, 0.3], 0.2: [0.9, 0.8, 0.01], 0.3: [0.9, 0.8, 0.06], 0.4: [0.9, 0.8, None]}
    trials = [trial_of(tiny, "sgd", steps=20, learning_rate=rate) for rate in curves]
    for trial, curve in zip(trials, curves.values(), strict=True):
        name = tiny.target.metric
        rows = [{"kind": "measurement", "step": 10 * i, name: v} for i, v in enumerate(curve)]
        path = trial.record_path(tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        end = {"kind": "end", "status": "finished" if curve[-1] else "diverged"}
        records.append(path, {"kind": "header", "schema": records.SCHEMA}, *rows, end, at=0)
    order = sorted([*trials[2:], *trials[:2]], key=lambda trial: sweep.steps_to_target(trial, tmp_path))
    assert order == trials
    assert search.ranked(trials, tmp_path) == [trials[i] for i in (1, 2, 0, 3)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--trials", "0"), "0: must be 1 or more"),
        (("--engine", "ray"), "--engine ray: it is not installed; pip install ray"),
        (("--engine", "slurm"), "--engine slurm: it is not installed; pip install submitit"),
        (("--hosts", "here:1"), "--hosts: a batch is on one host"),
        (("--address", "here:1"), "--engine local: one process"),
        (("--opt", "adam"), "--opt adam: adam is taken"),
        (("--ruleset", "self", "--halving"), "--halving: it does not go with --ruleset self"),
        (("--ruleset", "external", "--seeds", "3"), "--seeds: it does not go with --ruleset external"),
        (("--opt", "EMPTY"), "the search space of learning_rate is empty: 0.1 to 0.1"),
        (("--opt", "NEGATIVE"), "low < high and low > 0, since it is logarithmic"),
        (("--opt", "NONE"), "it has no search space"),
    ],
)
def test_bad_input_to_a_sweep(command, tiny_task, tmp_path, monkeypatch, words, message):
    spaces = {
        "EMPTY": "{'learning_rate': Range(0.1, 0.1)}",
        "NEGATIVE": "{'learning_rate': Range(-1.0, 0.1)}",
        "NONE": "{}",
    }
    for name, space in spaces.items():
        (tmp_path / f"{name}.py").write_text(
            "import optax\nfrom optimizers.spec import Range, Spec\n"
            "def build(total_steps, *, learning_rate=0.05):\n    return optax.sgd(learning_rate)\n"
            f"SPEC = Spec(name={name!r}, build=build, space={space})\n"
        )
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    words = [str(tmp_path / f"{word}.py") if word in spaces else word for word in words]
    status, stdout, stderr = command(sweep, "--task", "tiny", "--opt", "adam", *words)
    assert (status, stdout) == (2, "")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


def test_records_of_another_version_of_the_task_are_not_mixed_with(command, tiny_task, tmp_path):
    field = ("--task", "tiny", "--opt", "sgd", "--steps", "10", "--trials", "2", "--seeds", "1")
    assert command(sweep, *field)[0] == 0
    path = next((tmp_path / "runs" / "tuning").rglob("*.jsonl"))
    header, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(records.encode(json.loads(header) | {"task_fingerprint": "old"}) + b"".join(rest))
    status, _, stderr = command(sweep, *field)
    assert status == 2
    assert "records of another version of the task tiny" in stderr
    assert stderr.count("\n") == 1


def test_search_points_fill_the_space_and_are_the_same_each_time():
    spec = registry.find("adam")
    points = search.points(spec, 64)
    assert points == search.points(spec, 64)
    assert points[:5] == search.points(spec, 5)
    for name, given in spec.space.items():
        values = [point[name] for point in points]
        assert given.low <= min(values) < given.low * 1.3
        assert given.high / 1.3 < max(values) <= given.high


def test_the_consistency_study_makes_its_figure_and_table(command, tiny_task, tmp_path):
    status, stdout, _ = command(
        study, "consistency", "--task", "tiny", "--horizon", "short", "--seeds", "3"
    )
    assert status == 0
    assert "fixed_teacher" in stdout
    assert "gap" in stdout
    assert (tmp_path / "report" / "consistency-tiny-20.png").exists()


@pytest.mark.parametrize(
    ("fixed", "matching", "expected"),
    [
        ([1.2, 1.3, 1.4], [1.0, 1.01, 1.0], "The claim holds"),
        ([1.0, 1.01, 1.0], [1.0, 1.01, 1.0], "does not hold"),
        ([1.2, 1.3, 1.4], [1.2, 1.3, 1.4], "does not hold"),
        ([1.0, 1.3, 1.4], [1.0, 1.01, 1.0], "Undecided"),
    ],
)
def test_verdict_follows_from_the_intervals(fixed, matching, expected):
    text = study.verdict(summary.estimate(fixed), summary.estimate(matching))
    assert expected in text


def test_overhead_measures_both_sides(tiny, capsys):
    overhead.compare(trial_of(tiny, steps=20), 1)
    assert "ratio" in capsys.readouterr().out
    assert 0 < overhead.launch("adam") < 60


def test_teachers_learn_by_the_shipped_recipe(monkeypatch):
    """A fiftieth of the recipe already teaches more than half of the digits."""
    monkeypatch.setattr(make_teacher, "STEPS", 120)
    monkeypatch.setattr(make_teacher, "WARMUP", 20)
    network, data = TEACHERS["digits-a"].network, TASKS["digits"].source()
    params = make_teacher.train(network, data, seed=0)
    assert make_teacher.accuracy(network, params, data.validation) > 0.5


def test_interrupted_by_sigint_a_command_exits_130_and_resumes(tmp_path):
    words = [sys.executable, "benchmarks/run.py", "--opt", "adam", "--steps", "600", "--out", tmp_path]
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not records.paths(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes it" in stderr
    assert stderr.count("\n") == 1
    assert list(tmp_path.rglob("*.checkpoint"))
    (record,) = records.read_folder(tmp_path)
    step = record.measurements[-1]["step"]
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    (record,) = records.read_folder(tmp_path)
    assert record.end["status"] == "finished"
    assert record.end["resumed"] == 1
    assert step < 600
    assert "finished" in again.stdout


def test_a_trial_that_another_process_runs_is_waited_for_after_all_others(
    command, tiny_task, tiny, tmp_path
):
    """The lock of the first is released once the second is finished."""
    task = testbed.tasks.TASKS["tiny"]
    first, second = (trial_of(task, seed=seed, steps=20) for seed in (0, 1))
    paths = [trial.record_path(tmp_path / "runs") for trial in (first, second)]
    at_release = []

    def release() -> None:
        while not records.is_finished(paths[1]):
            time.sleep(0.02)
        at_release.append(paths[0].exists())
        held.close()

    with contextlib.ExitStack() as held:
        held.enter_context(records.lock(paths[0]))
        threading.Thread(target=release, daemon=True).start()
        words = ("--task", "tiny", "--opt", "adam", "--seeds", "2", "--horizon", "short")
        status, stdout, stderr = command(run, *words)
    assert status == 0
    assert at_release == [False]
    assert stdout.count("finished") == 2
    assert stderr.startswith(f"waiting: trial {paths[0].stem} is being run by another process")
    assert stderr.count("\n") == 1


def test_an_unwritable_report_is_noticed_before_the_trials(command, tiny_task, tmp_path):
    (tmp_path / "file").touch()
    words = ("--task", "tiny", "--opt", "adam", "--seeds", "1", "--report", "file/report")
    for module, more in ((study, ("consistency",)), (race, ("--opt", "sgd"))):
        status, _, stderr = command(module, *more, *words)
        assert status == 2
        assert "--report file/report: cannot be written (Not a directory)" in stderr
        assert not list(tmp_path.rglob("*.jsonl"))


def test_problems_are_opened_once():
    assert open_problem(TASKS["digits"]) is open_problem(TASKS["digits"], "function_matching")
    assert open_problem(TASKS["digits"]).source is open_problem(TASKS["digits"]).source


def test_lessons_from_photographs_teach_digits(command, tiny_task, tmp_path):
    words = ["--task", "tiny", "--opt", "adam", "--lessons-from", "photographs"]
    assert command(run, *words)[0] == 0
    (record,) = records.read_folder(tmp_path / "runs")
    assert record.header["task"] == "tiny-from-photographs"
    first, last = record.measurements[0], record.measurements[-1]
    assert last["test_kl"] < first["test_kl"]
    status, _, stderr = command(run, *words, "--protocol", "labels")
    assert status == 2
    assert "its lessons have no labels of the task's classes" in stderr


def test_prepare_reports_what_is_missing_and_exits_2(command, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FUNMATCH_CHECKPOINTS", str(tmp_path / "checkpoints"))
    teachers.load.cache_clear()
    status, stdout, stderr = command(prepare, "--task", "imagenet-ensemble")
    assert status == 2
    assert stderr == "prepare.py: --task imagenet-ensemble: 3 of its parts are missing, see above\n"
    for part in (
        "tfds build imagenet2012 --file_format=array_record",
        "R152x2_T_224.npz",
        "R152x2_T_384.npz",
    ):
        assert part in stdout
    assert command(prepare, "--task", "digits")[0] == 0


@pytest.fixture
def release(monkeypatch, tmp_path):
    """A public address of the flowers' teacher, on this machine."""
    (tmp_path / "release").mkdir()
    stand_ins.write_teacher(tmp_path / "release")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "release")
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        public = stand_ins.TEACHER.public
        address = f"http://localhost:{server.server_port}/{public.file}"
        teacher = dataclasses.replace(stand_ins.TEACHER, public=public._replace(address=address))
        flowers = dataclasses.replace(TASKS["flowers"], teachers=(teacher,))
        monkeypatch.setattr(testbed.tasks, "TASKS", {**TASKS, "flowers": flowers})
        monkeypatch.setenv("FUNMATCH_CHECKPOINTS", str(tmp_path / "checkpoints"))
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        teachers.load.cache_clear()
        yield tmp_path / "release"
        server.shutdown()


def test_prepare_fetches_checkpoints_whole_or_not_at_all(command, release, tmp_path):
    status, stdout, _ = command(prepare, "--task", "flowers", "--fetch")
    assert status == 2
    assert "teacher R152x2-flowers: 15,150 parameters" in stdout
    assert "missing: data set oxford_flowers102" in stdout
    (name,) = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert (tmp_path / "checkpoints" / name).read_bytes() == (release / name).read_bytes()
    (tmp_path / "checkpoints" / name).unlink()
    (release / name).unlink()
    status, _, stderr = command(prepare, "--task", "flowers", "--fetch")
    assert status == 2
    assert "HTTP Error 404" in stderr
    assert not list((tmp_path / "checkpoints").iterdir())


def test_throughput_measures_every_piece_of_a_step(command, monkeypatch, tmp_path):
    tasks = {**TASKS, "flowers": stand_ins.tiny_flowers()}
    monkeypatch.setattr(testbed.tasks, "TASKS", tasks)
    status, stdout, _ = command(
        throughput, "--task", "flowers", "--rounds", "1", "--out", tmp_path / "out"
    )
    assert status == 0
    (path,) = (tmp_path / "out").iterdir()
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["whole step", "teacher", "student", "optimizer", "images to the device"]
    assert rows["whole step"]["flops"] == rows["teacher"]["flops"] + rows["student"]["flops"]
    # Student and teacher are the same network: three passes, with backward, against one.
    assert rows["student"]["flops"] == 3 * rows["teacher"]["flops"]
    for name in rows:
        assert f"| {name} |" in stdout


def test_throughput_counts_the_flops_that_the_paper_scale_has():
    """PROTOCOL: 2.67 GFLOP for R50x1 at 128 pixels, 8.18 at 224, with 1000 classes."""
    network = TASKS["imagenet"].student
    for size, expected in ((128, 2.67e9), (224, 8.18e9)):
        images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
        params = jax.eval_shape(network.init, jax.random.key(0), images)
        assert throughput.matrix_flops(network.apply, params, images) == pytest.approx(
            expected, rel=0.01
        )


def test_throughput_compares_the_pipeline_with_a_bare_loop(capsys):
    throughput.measure_data(TASKS["flowers"], 256, 0, 1)
    assert "ratio" in capsys.readouterr().out
