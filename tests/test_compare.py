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
    quick(compare, *BASIC, "--precision", "1.5")  # another request before it, which is counted
    status, _, _ = quick(compare, *BASIC, "--plan", "plan.json")
    assert status == 0
    before, plan = records_of(tmp_path / "runs"), (tmp_path / "plan.json").read_bytes()
    answers = [verdict_in(tmp_path)]
    assert answers[0]["budget"]["asked"] == 2
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
    words = ("--opt", "slowed-2+adam", "--opt", "adam", "--no-tune", *FEW, "--require", "faster")
    status, _, stderr = quick(compare, *words)
    expected = "--require faster: adam-slowed-2 is not shown faster than adam"
    assert (status, expected in stderr) == (1, True)


@pytest.mark.parametrize(
    ("answer", "faster", "slower"),
    [("faster", True, False), ("slower", False, True), ("undecided", False, False)],
)
def test_faster_is_what_the_verdict_says_in_either_order(answer, faster, slower):
    content = {"pairs": [{"first": "sgd", "second": "adam", "answer": answer}]}
    assert compare.is_faster(content, "sgd", "adam") == faster
    assert compare.is_faster(content, "adam", "sgd") == slower


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--opt", "adam"), "two optimizers"),
        (("--opt", "adam", "--opt", "adam"), "several are called adam"),
        ((*BASIC, "--precision", "1"), "--precision 1"),
        ((*BASIC[:-2], "--minutes", "-1"), "--minutes -1"),
        ((*BASIC[:-2], "--minutes", "0"), "--minutes 0"),
        ((*BASIC, "--precision", "0"), "--precision 0"),
        ((*BASIC, "--seed", "20000"), "--seed 20000: give 16383 at most"),
        ((*BASIC, "--hosts", "auto"), "--hosts auto"),
        (("--opt", "sgd", "--opt", "adam", "--task", "tiny", "--steps", "19"), "--steps 19"),
        (("--opt", "sgd", "--opt", "adam", "--baseline", "lion"), "--baseline lion"),
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
            range(3), design.arms, (0, 1, comparison.TIMING - 1, comparison.TIMING)
        )
        for trial in dataclasses.replace(design, seed=seed).trials(arm, 40, block, 64)
    ]
    every = range(comparison.LOWEST, comparison.HIGHEST + 1)
    trials += comparison.ladder(design, {arm.name: {*every} for arm in design.arms})
    assert len({trial.seed for trial in trials}) == len(trials)
    assert len({trial.lessons for trial in trials}) == 3 * 4 + len(every)  # one for each block and rung


LADDER = {steps: (steps / 100) ** -0.5 for steps in (50, 71, 100, 141)}
MATCH = Match(100, 0.5, "", 0, LADDER, 0.02, 0)


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


def test_where_the_exponents_are_not_known_more_students_are_not_promised(design):
    two = dataclasses.replace(design, arms=design.arms[:2])
    outcome = dataclasses.replace(outcome_of(0.02, 0.01), aiming={"sgd": 0.03, "adam": 0.03})
    (pair,) = pairs(two, plan_of(adam=MATCH, sgd=MATCH), outcome)
    assert (pair.answer, pair.more_students) == ("undecided", 0)
    assert "more students would not decide it" in pair.sentence("test_kl", 1.0)


@pytest.mark.parametrize(("spread", "warned"), [(0.05, 0), (0.3, 1)])
def test_a_spread_beyond_what_was_simulated_is_warned_of(design, spread, warned):
    two = dataclasses.replace(design, arms=design.arms[:2])
    found = warnings(two, plan_of(adam=MATCH, sgd=MATCH), outcome_of(0.0, spread), {}, 1)
    assert sum("sgd: blocks scatter by" in warning for warning in found) == warned


@pytest.mark.parametrize(
    ("bound", "limit", "answer"), [("at least", 400, "slower"), ("at most", 25, "faster")]
)
def test_an_optimizer_beyond_its_ladder_has_a_bound(design, bound, limit, answer):
    beyond = Match(None, 0.1, bound, limit, LADDER, 0.02, 0)
    two = dataclasses.replace(design, arms=design.arms[:2])
    times = {"adam": np.full(6, math.log(100.0))}
    outcome = Outcome(6, times, times, {"adam": 0.0}, {"adam": 0})
    plan = plan_of(adam=MATCH, sgd=beyond)
    (pair,) = pairs(two, plan, outcome)
    assert (pair.answer, pair.ratio.value) == (answer, limit / 100)
    assert f"needs {bound}" in pair.sentence("test_kl", 1.0)
    assert f"at {limit} steps, the" in pair.sentence("test_kl", 1.0)
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
    pairs = [(0.1, 0.9), (0.2, 0.8), (0.4, 0.85), (0.3, 0.86), (0.25, 0.87)]
    tried = [{"learning_rate": rate, "b1": b1} for rate, b1 in pairs]
    assert search.on_edge(tried[1], tried) == {"b1": "lowest"}
    assert search.on_edge(tried[2], tried) == {"learning_rate": "highest"}
    assert search.on_edge(tried[4], tried) == {}
    assert search.on_edge(tried[2], tried[:4]) == {}, "four values are no search"


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


def test_a_pair_of_which_the_second_is_beyond_its_ladder_has_its_answer_too(design):
    beyond = Match(None, 0.1, "at least", 400, LADDER, 0.02, 0)
    times = {name: np.full(6, math.log(100.0)) for name in ("sgd", "adam")}
    outcome = Outcome(6, times, times, dict.fromkeys(times, 0.0), dict.fromkeys(times, 0))
    found = [*pairs(design, plan_of(adam=MATCH, sgd=MATCH, lion=beyond), outcome)]
    assert [(p.first, p.second, p.answer) for p in found[::2]] == [
        ("lion", "sgd", "slower"),
        ("lion", "adam", "slower"),
    ]


# Trials whose ends are known: the whole procedure, without training


class Law:
    """Log metrics at the ends of trials: a curve for each optimizer, and noise of each student."""

    def __init__(self, monkeypatch, noise=0.0, **curves):
        self.curves, self.noise, self.ran = curves, noise, []
        monkeypatch.setattr(comparison, "log_ends", self.log_ends)
        monkeypatch.setattr(comparison, "_lost", lambda trials, out: [False] * len(trials))
        monkeypatch.setattr(comparison, "seconds_of", lambda trials, out, whole=False: 1.0)

    def run(self, trials, out):
        self.ran += trials

    def log_ends(self, trials, out, metric):
        return np.array([self.end(trial) for trial in trials])

    def end(self, trial):
        own = np.random.default_rng(trial.seed).normal()
        return self.curves[trial.optimizer.name](math.log(trial.total_steps)) + self.noise * own


def power(steps, exponent=0.3):
    """Falls with a power of the steps, to 1 at so many."""
    return lambda log_steps: -exponent * (log_steps - math.log(steps))


def compared(design, law, **options):
    plan = comparison.make_plan(design, law.run, None, precision=1.05, **options)
    return plan, comparison.carry_out(design, plan, law.run, None)


@pytest.fixture
def pair_of(design):
    return dataclasses.replace(design, arms=design.arms[:2], steps=1000)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0, 1.05, 1.5, 3.0])
def test_without_noise_the_ratio_is_exact_wherever_it_is_on_the_ladder(pair_of, monkeypatch, ratio):
    law = Law(monkeypatch, sgd=power(1000 * ratio), adam=power(1000))
    plan, outcome = compared(pair_of, law)
    assert outcome.ratio("sgd", "adam").value == pytest.approx(ratio, rel=1e-3)
    assert plan.matched["sgd"] == comparison.on_grid(1000, math.log(1000 * ratio))
    assert outcome.blocks == plan.pilot, "there is no spread"
    assert all(1000 / 16 <= trial.total_steps <= 4000 for trial in law.ran)


def test_blocks_are_as_many_as_the_precision_needs_and_their_intervals_hold_the_truth(
    pair_of, monkeypatch
):
    law = Law(monkeypatch, 0.03, sgd=power(1050), adam=power(1000))
    held, blocks = [], []
    for seed in range(60):
        design = dataclasses.replace(pair_of, seed=seed, students=4)
        _, outcome = compared(design, law)
        assert outcome.blocks == max(6, outcome.needed("sgd", "adam", 1.05))
        for ran in outcome.ran["sgd"]:
            assert round(math.exp(ran)) == comparison.on_grid(1000, ran)
        found = outcome.ratio("sgd", "adam")
        held.append(found.low <= 1.05 <= found.high)
        blocks.append(outcome.blocks)
    assert sum(held) >= 52  # of 57 expected: fewer once in a hundred such tests
    assert len({*blocks}) > 5


def test_the_cap_of_blocks_holds(pair_of, monkeypatch):
    law = Law(monkeypatch, 0.3, sgd=power(1050), adam=power(1000))
    plan, outcome = compared(dataclasses.replace(pair_of, students=2), law, most=9)
    assert (plan.most, outcome.blocks) == (9, 9)


@pytest.mark.parametrize(
    ("curve", "bound", "limit"),
    [
        (lambda x: 0.5, "at least", 4000),
        (lambda x: -0.5, "at most", 62),
        (lambda x: 0.3 * (x - math.log(1000)), "", 0),  # it gets worse with more steps
    ],
)
def test_a_bound_is_given_only_where_the_whole_ladder_is_on_one_side(
    pair_of, monkeypatch, curve, bound, limit
):
    law = Law(monkeypatch, sgd=curve, adam=power(1000))
    match = comparison.scout(pair_of, law.run, None)[1]["sgd"]
    assert (match.steps, match.bound) == (None, bound)
    assert match.limit == pytest.approx(limit, rel=0.02)


def test_a_pilot_far_from_the_quality_does_not_send_the_main_blocks_anywhere(pair_of):
    ran = {name: np.full(6, math.log(1000.0)) for name in ("sgd", "adam")}
    times = {"sgd": ran["sgd"] + 5.0, "adam": ran["adam"] - 0.1}  # as if students had been lost
    outcome = Outcome(6, times, ran, dict.fromkeys(ran, 0.0), dict.fromkeys(ran, 0))
    horizons = comparison._aimed(pair_of, plan_of(adam=MATCH, sgd=MATCH), outcome)
    assert horizons["sgd"] == comparison.on_grid(1000, math.log(1000) + comparison.FARTHEST)
    assert horizons["adam"] == comparison.on_grid(1000, math.log(1000) - 0.1)


def test_the_baseline_must_get_better_with_more_steps(pair_of, monkeypatch):
    law = Law(monkeypatch, sgd=power(1000), adam=lambda x: 0.1 * x)
    with pytest.raises(comparison.NoBetterError, match="--baseline adam"):
        comparison.scout(pair_of, law.run, None)


def test_students_of_a_block_make_the_pilot_about_precise_enough(pair_of, monkeypatch):
    law = Law(monkeypatch, 0.03, sgd=power(1000), adam=power(1000))
    few, many = (comparison.make_plan(pair_of, law.run, None, precision=p).students for p in (1.2, 1.05))
    assert comparison.FEWEST_STUDENTS <= few < many <= comparison.LARGEST


def test_a_finished_student_without_a_number_at_its_end_is_lost():
    rows, end = [{"test_kl": 1.0}, {"test_kl": None}], {"status": "finished"}
    record = records.Record(Path("x"), {"decides": "test_kl"}, rows, end, [])
    assert comparison._is_lost(record)
    rows = [*rows, {"test_kl": 0.5, "another": None}]
    assert not comparison._is_lost(record._replace(measurements=rows))
