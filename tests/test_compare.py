"""compare.py: its plan, its trials, its answer. `tests/test_crowds.py` has the statistics under it."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from analysis.statistics.ratio import Ratio
from benchmarks import compare, comparison, search
from benchmarks.comparison import Arm, Design, Match, Outcome, Plan
from benchmarks.verdict import Pair, pairs, warnings
from optimizers import registry
from optimizers.spec import Range
from testbed import records
from testbed.errors import RequestError
from testbed.problem.problem import open_problem
from tests.users import PLAIN, write

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "verdict.schema.json").read_text())
FEW = ("--task", "tiny", "--steps", "40", "--students", "2", "--minutes", "0.01")
BASIC = ("--opt", "sgd", "--opt", "adam", "--no-tune", *FEW)


@pytest.fixture
def quick(command, monkeypatch):
    """`command` without the report, which takes longer than all else here."""
    monkeypatch.setattr(compare.report, "write", lambda *given: "")
    return command


def records_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))}


def verdict_in(tmp_path, report="report"):
    content = json.loads((tmp_path / report / "verdict.json").read_text())
    jsonschema.validate(content, SCHEMA)
    return content


def test_it_answers_and_asking_again_changes_nothing(command, tiny_task, tmp_path):
    status, stdout, stderr = command(compare, *BASIC)
    assert (status, stderr) == (0, "")
    content = verdict_in(tmp_path)
    (pair,) = content["pairs"]
    assert pair["sentence"] in stdout
    assert (pair["first"], pair["second"]) == ("sgd", "adam")
    assert content["blocks"] == {"pilot": 6, "run": 6, "allowed": 6}  # no minutes for more
    assert (tmp_path / "report" / "index.html").exists()
    before = records_of(tmp_path / "runs")
    again = command(compare, *BASIC)[1]
    assert pair["sentence"] in again
    assert records_of(tmp_path / "runs") == before
    assert verdict_in(tmp_path)["pairs"] == content["pairs"]


def test_lost_records_are_made_again_to_the_same_answer(quick, tiny_task, tmp_path):
    quick(compare, *BASIC)
    before = verdict_in(tmp_path)
    blocks = sorted(tmp_path.glob("runs/compare/*/blocks/**/*.jsonl"))
    for path in blocks[::3]:
        path.unlink()
    status, _, _ = quick(compare, *BASIC)
    assert status == 0
    assert sorted(tmp_path.glob("runs/compare/*/blocks/**/*.jsonl")) == blocks
    np.testing.assert_allclose(
        [pair["ratio"] for pair in verdict_in(tmp_path)["pairs"]],
        [pair["ratio"] for pair in before["pairs"]],
        rtol=1e-6,
    )


def test_a_frozen_plan_has_one_answer_however_often_it_is_run(quick, tiny_task, tmp_path):
    status, _, _ = quick(compare, *BASIC, "--plan", "plan.json")
    assert status == 0
    before, plan = records_of(tmp_path / "runs"), (tmp_path / "plan.json").read_bytes()
    answers = [verdict_in(tmp_path)]
    for _ in range(9):
        status, _, _ = quick(compare, "--plan", "plan.json")
        assert status == 0
        answers.append(verdict_in(tmp_path))
    unchanging = [{k: v for k, v in a.items() if k != "command"} for a in answers]
    assert all(a == unchanging[0] for a in unchanging)
    assert records_of(tmp_path / "runs") == before
    assert (tmp_path / "plan.json").read_bytes() == plan


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--seed", "3"), "--seed 3: the plan plan.json has 0"),
        (("--opt", "sgd"), "--opt ['sgd']: the plan plan.json has ['sgd', 'adam']"),
        (("--minutes", "60"), "--minutes 60.0: the plan plan.json has 0.01"),
    ],
)
def test_options_that_contradict_a_plan_are_refused(quick, tiny_task, tmp_path, words, says):
    quick(compare, *BASIC, "--plan", "plan.json")
    status, _, stderr = quick(compare, "--plan", "plan.json", *words)
    assert status == 2
    assert says in stderr


def test_a_plan_is_not_followed_by_another_version_of_an_optimizer(quick, tiny_task, tmp_path, files):
    file = write(files, PLAIN, "mine.py")
    words = ("--opt", file, "--opt", "adam", "--no-tune", *FEW, "--plan", "plan.json")
    assert quick(compare, *words)[0] == 0
    Path(file).write_text(PLAIN.replace("0.05", "0.06"))
    status, _, stderr = quick(compare, "--plan", "plan.json")
    assert status == 2
    assert "changed since the plan was made" in stderr


def test_other_budgets_go_on_from_the_same_trials_and_are_counted(quick, tiny_task, tmp_path):
    quick(compare, *BASIC)
    before = records_of(tmp_path / "runs")
    status, _, _ = quick(compare, *BASIC, "--precision", "1.2")
    assert status == 0
    assert before.items() <= records_of(tmp_path / "runs").items()
    content = verdict_in(tmp_path)
    assert content["budget"]["asked"] == 2
    assert any("requested 2 times" in warning for warning in content["warnings"])


def test_all_are_tuned_with_equally_many_points(quick, tiny_task, tmp_path):
    words = ("--opt", "sgd", "--opt", "adam", "--points", "2", "--extend", *FEW)
    words = (*words, "--plan", "plan.json")
    assert quick(compare, *words)[0] == 0
    content = verdict_in(tmp_path)
    for optimizer in content["optimizers"]:
        assert optimizer["tuned"]["points"] == 4
        best = optimizer["tuned"]["best"]
        assert optimizer["hyperparameters"].items() >= best.items()
    paths = list(tmp_path.glob("runs/compare/tuning/**/*.jsonl"))
    names = sorted(records.read(path).header["optimizer"] for path in paths)
    each = 4 + search.FINALISTS * search.STUDENTS
    assert names == each * ["adam"] + each * ["sgd"]
    assert quick(compare, "--plan", "plan.json")[0] == 0
    assert verdict_in(tmp_path) | {"command": ""} == content | {"command": ""}


def test_what_is_required_and_not_shown_has_status_1(quick, tiny_task):
    outcomes = [quick(compare, *BASIC, "--require", "faster")]
    outcomes.append(quick(compare, "--opt", "adam", "--opt", "sgd", *BASIC[4:], "--require", "faster"))
    statuses = [status for status, _, _ in outcomes]
    assert 1 in statuses
    assert set(statuses) <= {0, 1}
    assert all("--require faster" in stderr for status, _, stderr in outcomes if status)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--opt", "adam"), "two optimizers"),
        (("--opt", "adam", "--opt", "adam"), "adam is taken"),
        ((*BASIC, "--precision", "1"), "--precision 1"),
        ((*BASIC[:-2], "--minutes", "-1"), "--minutes -1"),
        ((*BASIC, "--baseline", "lion"), "--baseline lion"),
        ((*BASIC, "--extend"), "--extend"),
        ((*BASIC, "--plan", "."), "--plan .: a folder"),
        (("--opt", "sgd", "--opt", "adam", "--students", "65"), "--students 65: give 64 at most"),
    ],
)
def test_invalid_requests_are_one_line(quick, tiny_task, tmp_path, words, says):
    status, _, stderr = quick(compare, *words)
    assert status == 2
    assert says in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# The plan


@pytest.fixture
def design(tiny):
    arms = tuple(Arm(name, registry.find(name), {}) for name in ("sgd", "adam", "lion"))
    return Design(open_problem(tiny), arms, "adam", 40)


def test_no_two_students_of_a_comparison_or_of_its_repetitions_share_a_seed(design):
    trials = [
        trial
        for seed, arm, block in itertools.product(
            range(3), design.arms, (0, 1, comparison.SCOUTING - 1, comparison.SCOUTING)
        )
        for trial in dataclasses.replace(design, seed=seed).trials(arm, 40, block, 64)
    ]
    assert len({trial.seed for trial in trials}) == len(trials)
    assert len({trial.lessons for trial in trials}) == 3 * 4  # one for each block


LADDER = {steps: (steps / 100) ** -0.5 for steps in (50, 71, 100, 141)}
MATCH = Match(100, 0.5, "", 0, LADDER, 0)


def plan_of(**matches):
    return Plan(1.0, matches, 8, 1.05, 6, 20, 3.0)


def outcome_of(shift, spread=0.02, blocks=6, **others):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=blocks) * spread
    times = {"adam": np.full(blocks, math.log(100.0)), "sgd": math.log(100.0) + shift + noise}
    ran = dict.fromkeys(times, np.full(blocks, math.log(100.0)))
    return Outcome(6, times, ran, dict.fromkeys(times, 0.0), dict.fromkeys(times, 0) | others)


@pytest.mark.parametrize(
    ("shift", "spread", "answer", "says"),
    [
        (-0.3, 0.02, "faster", "sgd needs 0.7"),
        (0.3, 0.02, "slower", "of adam's steps at matched quality (test_mixed_kl 1)"),
        (0.0, 0.01, "no difference", "no difference larger than"),
        (0.0, 0.2, "undecided", "students more of each, about"),
    ],
)
def test_the_sentence_follows_from_the_interval(design, shift, spread, answer, says):
    plan = plan_of(adam=MATCH, sgd=MATCH)
    two = dataclasses.replace(design, arms=design.arms[:2])
    (pair,) = pairs(two, plan, outcome_of(shift, spread))
    assert pair.answer == answer
    assert says in pair.sentence("test_mixed_kl", plan.quality)
    assert pair.students == 48
    assert (pair.more_students > 0) == (answer == "undecided")


def test_a_pair_that_is_undecided_names_the_students_that_would_decide(design):
    two = dataclasses.replace(design, arms=design.arms[:2])
    outcome = outcome_of(0.03, 0.1)
    (pair,) = pairs(two, plan_of(adam=MATCH, sgd=MATCH), outcome)
    assert pair.answer == "undecided"
    assert pair.more_students == 8 * (outcome.needed("sgd", "adam", 1.05) - 6)
    assert pair.detects == 1.05


@pytest.mark.parametrize(("spread", "warned"), [(0.05, 0), (0.3, 1)])
def test_a_spread_beyond_what_was_simulated_is_warned_of(design, spread, warned):
    two = dataclasses.replace(design, arms=design.arms[:2])
    found = warnings(two, plan_of(adam=MATCH, sgd=MATCH), outcome_of(0.0, spread), {}, 1)
    assert sum("sgd: blocks scatter by" in warning for warning in found) == warned


@pytest.mark.parametrize(
    ("bound", "limit", "answer"), [("at least", 400, "slower"), ("at most", 25, "faster")]
)
def test_an_optimizer_beyond_its_ladder_has_a_bound(design, bound, limit, answer):
    beyond = Match(None, 0.1, bound, limit, LADDER, 0)
    two = dataclasses.replace(design, arms=design.arms[:2])
    times = {"adam": np.full(6, math.log(100.0))}
    outcome = Outcome(6, times, times, {"adam": 0.0}, {"adam": 0})
    plan = plan_of(adam=MATCH, sgd=beyond)
    (pair,) = pairs(two, plan, outcome)
    assert (pair.answer, pair.ratio.value) == (answer, limit / 100)
    assert bound in pair.sentence("test_kl", 1.0)
    assert any("is a bound" in warning for warning in warnings(two, plan, outcome, {}, 1))


def test_every_pair_has_its_answer(design):
    times = {name: np.full(6, 4.6) + 0.01 * np.arange(6) for name in ("sgd", "adam", "lion")}
    outcome = Outcome(6, times, times, dict.fromkeys(times, 0.0), dict.fromkeys(times, 0))
    found = pairs(design, plan_of(adam=MATCH, sgd=MATCH, lion=MATCH), outcome)
    assert [(p.first, p.second) for p in found] == [("sgd", "lion"), ("sgd", "adam"), ("lion", "adam")]


def test_an_exponent_of_one_half_turns_metrics_into_steps(design, monkeypatch):
    """Of a metric that falls with the root of the steps, 1 % more is 2 % of the steps."""
    ends = {"sgd": 0.01, "adam": 0.0, "lion": -0.01}
    monkeypatch.setattr(
        comparison,
        "log_ends",
        lambda trials, out, metric: np.full(len(trials), ends[trials[0].optimizer.name]),
    )
    monkeypatch.setattr(comparison, "_lost", lambda trials, out: [False] * len(trials))
    plan = plan_of(adam=MATCH, sgd=MATCH, lion=MATCH)
    outcome = comparison.outcome(design, plan, 6, Path("nowhere"))
    found = {name: float(np.exp(times.mean())) for name, times in outcome.times.items()}
    assert found == pytest.approx({"sgd": 102, "adam": 100, "lion": 98}, rel=1e-3)


def test_a_pair_prints_a_ratio_that_is_a_number():
    pair = Pair("a", "b", Ratio(0.9, 0.8, 1.1, 0.2, 6), 48, 1.1, "undecided", 8, 0.5, 1.05)
    assert "0.900 [0.800, 1.100]" in pair.sentence("test_kl", 0.1)


# The search


def test_the_best_on_an_edge_is_noticed():
    tried = [{"learning_rate": 0.1, "b1": 0.9}, {"learning_rate": 0.2, "b1": 0.8}]
    tried.append({"learning_rate": 0.4, "b1": 0.85})
    assert search.on_edge(tried[1], tried) == {"b1": "lowest"}
    assert search.on_edge(tried[2], tried) == {"learning_rate": "highest"}
    assert search.on_edge({"b1": 0.5}, [{"b1": 0.5}]) == {}


def test_the_range_beyond_an_edge_is_half_as_wide_and_touches_it():
    assert search.beyond(Range(0.01, 1.0), "highest") == pytest.approx((1.0, 10.0, True))
    assert search.beyond(Range(0.01, 1.0), "lowest") == pytest.approx((0.001, 0.01, True))
    assert search.beyond(Range(0.0, 1.0, log=False), "highest") == (1.0, 1.5, False)


def test_a_learning_rate_without_a_range_is_searched_around_its_default(files):
    spec = registry.find(str(write(files, PLAIN, "mine.py")))
    (rate,) = [v for k, v in registry.defaults(spec).items() if k == "learning_rate"]
    space = search.with_space(dataclasses.replace(spec, space={})).space
    assert space["learning_rate"] == pytest.approx((rate / 10, rate * 10, True))


def test_an_optimizer_with_nothing_to_search_is_refused(files):
    text = "import optax\n\n\ndef build(total_steps):\n    return optax.sgd(0.1)\n"
    spec = registry.find(str(write(files, text, "mine.py")))
    with pytest.raises(RequestError, match="nothing to search"):
        search.with_space(spec)
