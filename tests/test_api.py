"""The public API: what a notebook does, what is identified, what is written and what is not."""

import dataclasses
import json
import linecache
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import testbed
from docs import make_api
from testbed import RequestError, Trial, open_problem, run, train
from tests.trials import finish, trial_of, without_times

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def build(total_steps: int, *, learning_rate: float = 0.01) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, total_steps))


def test_importing_the_testbed_loads_no_jax_and_every_public_name_exists():
    code = "import sys, testbed; print('jax' in sys.modules); testbed.TASKS; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert done.stdout.split() == [b"False", b"True"]
    for name in testbed.__all__:
        assert getattr(testbed, name) is not None
    assert set(testbed.__all__) <= set(dir(testbed))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testbed.nothing  # noqa: B018


def test_the_problem_of_a_trial_is_a_value_with_pure_functions(tiny):
    problem = open_problem(tiny)
    params = problem.init(jax.random.key(0))
    lesson = problem.lesson(0, 3)
    loss, again = problem.loss(params, lesson), jax.jit(problem.loss)(params, lesson)
    assert float(loss) == pytest.approx(float(again), rel=1e-6)
    gradient = jax.grad(problem.loss)(params, lesson)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    scores = problem.evaluate(params)
    assert scores == problem.evaluate(params)
    assert {"train_kl", "validation_kl", "test_accuracy"} <= set(scores)


def test_train_writes_nothing_and_returns_what_the_record_has(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trial = trial_of(tiny)
    result = train(trial)
    assert not list(tmp_path.iterdir())
    record = finish(trial, tmp_path)
    timeless = [{k: v for k, v in m.items() if k != "train_seconds"} for m in result.measurements]
    assert timeless == without_times(record)[1:-1]
    assert result.end["params_sha256"] == record.end["params_sha256"]
    scores = trial.problem.evaluate(result.params)
    assert scores["validation_kl"] == pytest.approx(result.measurements[-1]["validation_kl"], rel=1e-5)
    assert jax.tree.leaves(result.opt_state)


@pytest.mark.parametrize("optimizer", [optax.adam(0.01), build, "adam"])
def test_an_optimizer_can_be_given_in_any_form(tiny, tmp_path, optimizer):
    trial = Trial(open_problem(tiny), optimizer, total_steps=20)
    record = run(trial, tmp_path)
    assert record.end["status"] == "finished"
    assert record.measurements[-1]["validation_kl"] < record.measurements[0]["validation_kl"]
    assert run(trial, tmp_path).header == record.header, "a finished trial is not run again"
    assert Trial(trial.problem, optimizer, 20, name="mine").optimizer.name == "mine"


def test_a_value_that_is_not_an_optimizer_is_refused_in_one_line(tiny):
    with pytest.raises(RequestError, match=r"give an optax transformation such as optax.adam\(0.01\)"):
        Trial(open_problem(tiny), 3, 20)
    with pytest.raises(RequestError, match="give an optax transformation such as"):
        Trial(open_problem(tiny), optax.adam, 20)  # total_steps would be its learning rate
    with pytest.raises(RequestError, match="did you mean 'adam'"):
        Trial(open_problem(tiny), "adan", 20)
    for steps, seed, message in ((0, 0, "total_steps 0"), (20, -1, "seed -1"), (20, 2**31, "seed 2147")):
        with pytest.raises(RequestError, match=message):
            Trial(open_problem(tiny), "adam", steps, seed)


def test_trials_of_one_transformation_share_their_programs(tiny):
    adam = optax.adam(0.01)
    one, two = (Trial(open_problem(tiny), adam, 20, seed) for seed in (0, 1))
    assert one.compile() is two.compile()


def test_a_transformation_is_identified_by_what_it_computes(tiny):
    """The checksum is the same in every process; other numbers, also in arrays, change it."""
    problem = open_problem(tiny)

    def scaled(array):
        def update(grads, state, params=None):
            return jax.tree.map(lambda g: -jnp.asarray(array)[0] * g, grads), state

        return optax.GradientTransformation(lambda params: (), update)

    given = [
        optax.adam(0.01), optax.adam(0.02), optax.adam(0.01, b1=0.8), optax.sgd(0.01),
        scaled(np.linspace(0.1, 1, 999)), scaled(np.linspace(0.2, 1, 999)),
    ]  # fmt: skip
    ids = [Trial(problem, optimizer, 20).optimizer.sha256 for optimizer in given]
    assert len(set(ids)) == len(ids)
    assert Trial(problem, optax.adam(0.01), 20).optimizer.sha256 == ids[0]
    code = (
        "import benchmarks, optax\nfrom tests.conftest import make_tiny\n"
        "from testbed import Trial, open_problem\n"
        "print(Trial(open_problem(make_tiny()), optax.adam(0.01), 20).optimizer.sha256)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert done.stdout.decode().strip() == ids[0]


def test_a_transformation_that_calls_back_into_python_is_refused(tiny):
    def update(grads, state, params=None):
        jax.debug.callback(lambda: None)
        return grads, state

    with pytest.raises(RequestError, match="calls back into Python cannot be identified"):
        Trial(open_problem(tiny), optax.GradientTransformation(lambda p: (), update), 20)


def test_saved_parameters_are_those_that_init_reads(tiny, tmp_path):
    """A student that starts from the evaluated parameters begins where the first one ended."""
    record = run(trial_of(tiny, "schedule_free"), tmp_path, save_params=True)
    path = record.path.with_suffix(".npz")
    second = Trial(open_problem(tiny), "sgd", 10, init=path)
    start, end = train(second).measurements[0], record.measurements[-1]
    assert start["validation_kl"] == pytest.approx(end["validation_kl"], rel=1e-6)
    path.unlink()
    run(trial_of(tiny, "schedule_free"), tmp_path, save_params=True)
    assert path.exists(), "a finished trial is run again for them"
    assert without_times(finish(trial_of(tiny, "schedule_free"), tmp_path)) == without_times(record)


def test_problems_are_opened_on_the_devices_in_use(tiny):
    """Also where they have been opened before: their arrays are elsewhere."""
    problem = open_problem(dataclasses.replace(tiny))
    assert problem.source.n == 1020
    with (
        mock.patch("testbed.devices.mesh", return_value="other devices"),
        pytest.raises(ValueError, match="opened on other devices"),
    ):
        train(Trial(problem, "adam", 10))


def test_a_run_again_that_fails_leaves_the_finished_record(tiny, tmp_path):
    trial = trial_of(tiny)
    before = finish(trial, tmp_path).path.read_bytes()
    with (
        mock.patch("testbed.training.alone.loop.drive", side_effect=MemoryError),
        pytest.raises(MemoryError),
    ):
        finish(trial, tmp_path, fresh=True)
    assert trial.record_path(tmp_path).read_bytes() == before


def cells(path: Path) -> list[str]:
    notebook = json.loads(path.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs_and_compares_in_at_most_ten_lines(tmp_path, monkeypatch):
    """As IPython runs it: each cell is a file that `inspect` can read."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "__main__"}
    for number, text in enumerate(cells(EXAMPLES / "compare.ipynb")):
        text = text.replace("total_steps=100", "total_steps=20")
        name = f"<cell {number}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), space)  # noqa: S102
    assert len(list(tmp_path.rglob("*.jsonl"))) == 6
    assert len(space["table"]) > 0
    (comparison,) = [text for text in cells(EXAMPLES / "compare.ipynb") if "time_to_accuracy" in text]
    assert len([line for line in comparison.splitlines() if line.strip()]) <= 10


def test_the_notebook_keeps_no_outputs():
    notebook = json.loads((EXAMPLES / "compare.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])


def test_the_script_runs(tmp_path):
    script = [sys.executable, EXAMPLES / "compare.py", "20", "3"]
    done = subprocess.run(script, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert len(re.findall(r"^(?:lion|adam) \d \d+\.\d+$", done.stdout, re.M)) == 6
    assert (tmp_path / "time-to-accuracy.png").exists()
    assert "speedup" in done.stdout


def test_the_readmes_example_of_the_api_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (text,) = [block for block in blocks if "open_problem" in block]
    assert len(text.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(re.sub(r"1_000", "20", text), "README.md", "exec"), {"__name__": "x"})  # noqa: S102
    assert list(tmp_path.rglob("*.jsonl"))


def test_the_page_of_the_api_is_that_of_its_docstrings():
    assert (ROOT / "docs" / "api.md").read_text() == make_api.page(), "python -m docs.make_api"


def test_a_problems_functions_can_be_traced_before_anything_else(tiny):
    problem = open_problem(dataclasses.replace(tiny))
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    params = jax.jit(problem.init)(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
