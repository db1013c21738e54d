"""The smallest difference that a task can show: what it is made of, and what it costs."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from jax import random
from scipy import stats

from benchmarks import jobs, resolution
from testbed import open_problem, records
from testbed.data.arrays import Generated, Part
from testbed.problem.evaluation import evaluate
from tests.test_batch import FRAGILE, finish_batch
from tests.trials import changed, trial_of
from tests.users import refusal

WORDS = ("--opt", "adam", "--opt", "sgd", "--task", "tiny", "--steps", "12", "--students", "4")
WORDS += ("--lessons", "4")


def grid(tiny, opt="adam", steps=12, **hp):
    def make(seed, lesson_seed):
        trial = trial_of(tiny, opt, seed=seed, steps=steps, **hp)
        return type(trial)(trial.problem, trial.optimizer, steps, seed, lesson_seed)

    return resolution.grid(make, 4, 4)


def test_it_measures_prints_and_keeps_a_table_and_runs_no_student_twice(command, tiny_task, tmp_path):
    table = tmp_path / "tables" / "resolution.csv"
    status, shown, _ = command(resolution, *WORDS, "--out", tmp_path / "runs", "--table", table)
    assert status == 0
    assert "noise_over_slope" in shown
    rows = pd.read_csv(table).set_index("optimizer")
    assert list(rows.index) == ["adam", "sgd"]
    for _, row in rows.iterrows():
        parts = [row[f"sd_{name}"] for name in ("first_weights", "lessons", "both", "evaluation")]
        assert math.isclose(row["sd"], math.hypot(*parts))
        assert math.isclose(row["noise_over_slope"], row["sd"] / row["exponent"])
        assert row["smallest_5"] > row["smallest_16"] > row["smallest_64"] > 1
        price = 2 * row["students_for_1.05"] * row["seconds_per_student"]
        assert math.isclose(row["seconds_for_1.05"], price)
        assert 0 < row["evaluation_share"] < 1
    found = records.read_folder(tmp_path / "runs")
    assert len(found) == 2 * 16 * 3
    assert {r.header["total_steps"] for r in found} == {6, 12, 24}
    assert len({r.header["batch"]["id"] for r in found}) == 2 * 4 * 3, "one for each optimizer"
    before = {r.path: r.path.stat().st_mtime_ns for r in found}
    command(resolution, *WORDS, "--out", tmp_path / "runs", "--table", table)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(pd.read_csv(table)) == 2, "rows are replaced"


def test_interrupted_it_goes_on(command, tiny_task, tmp_path, monkeypatch):
    calls = iter(range(10**6))
    heard = jobs.interrupts

    class After:
        def __enter__(self):
            self.real = heard()
            self.real.__enter__()
            return lambda: next(calls) == 5

        def __exit__(self, *failed):
            return self.real.__exit__(*failed)

    monkeypatch.setattr(jobs, "interrupts", After)
    status, _, said = command(resolution, *WORDS, "--out", tmp_path)
    assert (status, "resumes it" in said) == (130, True)
    assert len([r for r in records.read_folder(tmp_path) if r.end]) < 96
    assert command(resolution, *WORDS, "--out", tmp_path)[0] == 0


def test_rows_of_other_tasks_stay_in_the_table(tmp_path):
    path = tmp_path / "table.csv"
    one = pd.DataFrame({"task": ["a", "b"], "optimizer": "adam", "total_steps": 4, "sd": [1.0, 2.0]})
    resolution.write(one, path)
    resolution.write(one.iloc[1:].assign(sd=3.0), path)
    assert pd.read_csv(path)["sd"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.34])
def test_two_crowds_of_so_many_students_tell_the_ratio_four_times_of_five(noise):
    n = int(resolution.students_needed(noise))
    assert resolution.smallest_ratio(noise, n) <= 1.05
    assert n == 2 or resolution.smallest_ratio(noise, n - 1) > 1.05
    if n > 2:
        rng = np.random.default_rng(0)
        one, two = (rng.normal(mean, noise, (4000, n)) for mean in (0, math.log(1.05)))
        error = np.sqrt((one.var(axis=1, ddof=1) + two.var(axis=1, ddof=1)) / n)
        t = (two.mean(axis=1) - one.mean(axis=1)) / error
        share = np.mean(np.abs(t) > stats.t.ppf(0.975, 2 * n - 2))
        assert 0.77 < share < (0.85 if n > 4 else 1.0)


def test_where_more_steps_make_nothing_better_no_price_is_named():
    assert math.isnan(resolution.students_needed(math.nan))
    assert math.isnan(resolution.smallest_ratio(math.nan, 5))


def test_students_that_diverged_are_counted(tiny, tmp_path):
    calm, lost = (grid(tiny, FRAGILE, learning_rate=rate)[0] for rate in (0.1, 7.0))
    finish_batch([*calm, *lost], tmp_path)
    assert [resolution.diverged(t, tmp_path) for t in (*calm, *lost)] == [False] * 4 + [True] * 4


def test_the_sets_of_views_are_different_views_of_the_same_examples(tiny):
    problem = changed(open_problem(tiny), mixed_per_input=2)
    found = [problem.eval_data, *(resolution.other_views(problem, number) for number in (1, 2))]
    tests = [data.held_out["test"] for data in found]
    for part in ("views", "mixed"):
        inputs = [{x.tobytes() for x in rows(getattr(test, part).inputs)} for test in tests]
        assert not any(one & other for one, other in itertools.combinations(inputs, 2))
    central = [sorted(x.tobytes() for x in rows(test.central.inputs)) for test in tests]
    assert central[0] == central[1] == central[2]
    params = problem.init(random.key(0))
    scores = [evaluate(problem.task, problem.logits, params, data)["test_kl"] for data in found]
    np.testing.assert_allclose(scores, scores[0], rtol=0.1)
    assert len(set(map(float, scores))) == 3


def rows(inputs):
    return np.asarray(inputs).reshape(-1, 64)


def test_of_a_generator_the_sets_are_other_draws(tiny):
    def draw(arrays, key, n):
        return Part(random.uniform(key, (n, 8, 8, 1)), None)

    problem = changed(open_problem(tiny), source=Generated(draw, held_out=16), name="drawn")
    sets = [resolution.other_views(problem, number).held_out["test"] for number in (1, 2)]
    used = [problem.eval_data.held_out[part] for part in ("validation", "test")]
    assert len({np.asarray(x.central.inputs).tobytes() for x in (*sets, *used)}) == 4


def test_what_cannot_be_estimated_is_refused(command, tiny_task):
    assert "16 students" in refusal(
        command, resolution, "--opt", "adam", "--students", "3", "--lessons", "3"
    )
    assert "half of it" in refusal(command, resolution, "--opt", "adam", "--steps", "1")
    assert "one host" in refusal(command, resolution, "--opt", "adam", "--hosts", "auto")
