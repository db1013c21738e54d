"""Races: rivals in turn, ratios that are paired, intervals that cover."""

import dataclasses
import json
import signal
from types import MappingProxyType

import numpy as np
import pytest

from analysis.statistics import race as statistics
from analysis.statistics import ratio
from benchmarks import race
from testbed import records
from testbed.tasks import TASKS
from testbed.training.alone import iterate
from testbed.training.loop import Progress
from tests.test_analysis import FAST, NEVER, SLOW, write
from tests.trials import trial_of, without_times


@pytest.fixture
def tiny_task(tiny, monkeypatch):
    """Registers the tiny task under its name, with a target that adam reaches on its way."""
    task = dataclasses.replace(
        tiny,
        horizons=MappingProxyType({"short": 40}),
        target=tiny.target._replace(value=1.6),
    )
    monkeypatch.setattr("testbed.tasks.TASKS", {**TASKS, "tiny": task})


def lane(steps):
    """A trial's progress that is at these steps."""
    for step in steps:
        yield Progress(step, max(steps), 0.0, {})


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_each_trial_has_each_place_equally_often_and_all_its_segments(count, first):
    rounds = 6 * count
    seen = list(race.interleave([lane(range(rounds)) for _ in range(count)], first))
    for number in range(count):
        assert [at.step for n, at in seen if n == number] == list(range(rounds))
    orders = [[n for n, _ in seen[i : i + count]] for i in range(0, len(seen), count)]
    assert orders[0][0] == first % count
    for place in range(count):
        at_place = [order[place] for order in orders]
        assert all(at_place.count(number) == rounds // count for number in range(count))


def test_the_trial_ahead_in_steps_waits():
    """Segments of 4 steps against segments of 1: never a segment apart."""
    at = [0, 0]
    for number, progress in race.interleave([lane(range(0, 41, 4)), lane(range(41))]):
        at[number] = progress.step
        assert abs(at[0] - at[1]) <= 4
    assert at == [40, 40]


def test_a_trial_that_ends_early_drops_out_and_the_others_continue_in_turn():
    seen = list(race.interleave([lane([0, 3]), lane(range(9)), lane(range(9))]))
    rest = [n for n, at in seen if at.step > 3]
    assert sorted(rest) == [1] * 5 + [2] * 5
    firsts = rest[::2]
    assert abs(firsts.count(1) - firsts.count(2)) <= 1


def test_machine_slowdowns_do_not_change_the_ratio_of_interleaved_trials():
    """A machine that is up to four times slower for a while, on and off, at random."""
    rng = np.random.default_rng(0)
    slowness = np.repeat(rng.uniform(1, 4, 400), rng.integers(3, 40, 400))

    def seconds(order):
        """The ratio of the times of both, if they use the machine in this order."""
        spent = [0.0, 0.0]
        for moment, number in enumerate(order):
            spent[number] += slowness[moment]
        return spent[1] / spent[0]

    segments = 25
    raced, apart = [], []
    for seed in range(40):
        turns = race.interleave([lane(range(segments)), lane(range(segments))], seed)
        raced.append(seconds([n for n, _ in turns]))
        apart.append(seconds([0] * segments + [1] * segments))
        slowness = np.roll(slowness, -2 * segments)
    interval = ratio.geometric_mean(raced)
    assert interval.low <= 1 <= interval.high
    assert np.std(np.log(raced)) < np.std(np.log(apart)) / 4


def test_turns_are_as_short_as_asked_for(tiny, tmp_path):
    trial = trial_of(tiny, steps=12)
    assert [at.step for at in iterate(trial, tmp_path, longest=0.0)] == list(range(13))


def test_a_miss_is_reported_and_bounds_the_ratio(tmp_path):
    """At even steps of 25 and 0.1 s: FAST is at the target after 25 steps, SLOW after 75."""
    for seed in range(4):
        write(tmp_path / "base", "adam", seed, SLOW if seed < 3 else NEVER)
        write(tmp_path / "rival", "adam", seed, (FAST, FAST, NEVER, FAST)[seed])
        write(tmp_path / "lost", "adam", seed, NEVER)
    run_ids = {path.stem for path in records.paths(tmp_path)}
    assert len(run_ids) == 4, "the lanes' trials have the same run_ids"
    frame = statistics.measurements(tmp_path, ["base", "rival", "lost"], run_ids)
    table = statistics.pairs(frame, "base")
    assert list(table["lane"].unique()) == ["base", "rival", "lost"]
    rival = table[table["lane"] == "rival"]
    assert list(rival["bound"]) == ["", "", "at least", "at most"]
    assert list(rival["ratio_of_steps_to_target"]) == pytest.approx([1 / 3, 1 / 3, 4 / 3, 1 / 4])
    assert list(table[table["lane"] == "lost"]["bound"]) == ["at least"] * 3 + ["none"]
    assert list(statistics.standings(table)["reached"]) == ["3 of 4", "3 of 4", "0 of 4"]
    sentence = statistics.sentence(table, "rival", "base", "kl <= 1")
    assert sentence.startswith(
        "rival: 0.3333 [0.25, 1.333] of base's seconds to kl <= 1, 0.3333 [0.25, "
    )
    assert sentence.endswith(
        "1 [1, 1] of its seconds per step; n = 4; base missed it on 1; rival missed it on 1"
    )
    lost = statistics.sentence(table, "lost", "base", "kl <= 1")
    assert "at least 1.333 [" in lost
    assert ", ∞) of base's seconds to kl <= 1" in lost
    assert lost.endswith("base missed it on 1; lost missed it on 4")


def test_a_pause_leaves_the_seconds_of_its_seed_out_and_keeps_its_steps(tmp_path):
    for seed in range(4):
        write(tmp_path / "base", "adam", seed, SLOW)
        path = write(tmp_path / "rival", "adam", seed, FAST)
        *rest, last = path.read_bytes().splitlines(keepends=True)
        end = json.loads(last) | {"ledger": {"paused_s": 3.0 if seed == 2 else 0.0}}
        path.write_bytes(b"".join(rest) + records.encode(end))
        edited = tmp_path / "base" / path.relative_to(tmp_path / "rival")
        *rest, last = edited.read_bytes().splitlines(keepends=True)
        edited.write_bytes(b"".join(rest) + records.encode(json.loads(last) | {"ledger": {}}))
    paths = records.paths(tmp_path)
    assert statistics.paused_seeds(paths) == [2]
    frame = statistics.measurements(tmp_path, ["base", "rival"], {path.stem for path in paths})
    table = statistics.pairs(frame, "base")
    rival = table[table["lane"] == "rival"]
    assert list(rival["ratio_of_steps_to_target"]) == pytest.approx([1 / 3] * 4)
    assert list(rival["ratio_of_seconds_to_target"]) == pytest.approx(
        [1 / 3, 1 / 3, np.nan, 1 / 3], nan_ok=True
    )
    groups = (table[table["lane"] == lane].set_index("seed") for lane in ("rival", "base"))
    group, base = groups
    assert statistics.to_target(group, base, "seconds").n == 3
    assert statistics.to_target(group, base, "steps").n == 4
    assert list(statistics.standings(table)["seconds to target"]) == ["0.30", "0.10"]
    only = statistics.pairs(frame[frame["seed"] == 2], "base")
    assert "rival: - of base's seconds" in statistics.sentence(only, "rival", "base", "kl <= 1")


def test_an_optimizer_against_itself_takes_the_same_steps_to_the_same_bits(command, tiny_task, tmp_path):
    words = ["--task", "tiny", "--opt", "adam", "--opt", "adam", "--seeds", "2"]
    status, stdout, stderr = command(race, *words)
    assert status == 0
    assert stderr == "", "silent in a pipe"
    (folder,) = (tmp_path / "runs" / "race").iterdir()
    lanes = [records.read_folder(folder / name) for name in ("adam", "adam-2")]
    assert len(lanes[0]) == len(lanes[1]) == 2
    for one, other in zip(*lanes, strict=True):
        assert one.end["status"] == other.end["status"] == "finished"
        assert without_times(one) == without_times(other)
        assert records.first_reaching(one.measurements, one.header["target"])["step"] > 0
    assert ", 1 of its steps" in stdout
    assert "adam-2 2 of 2" in " ".join(stdout.split())
    assert "interrupted" not in stdout
    for name in ("race-tiny-40.csv", "race-tiny-40.png", "race-tiny-40-by-step.svg"):
        assert (tmp_path / "report" / name).exists()
    before = {path: path.read_bytes() for path in records.paths(folder)}
    assert command(race, *words)[:2] == (0, stdout)
    assert before == {path: path.read_bytes() for path in before}, "nothing is run twice"
    status, stdout, _ = command(race, *words, "--hp", "adam-2.learning_rate=0.02")
    assert status == 0
    assert len(list(folder.parent.iterdir())) == 2, "other rivals, another race: adam runs again"


def test_interrupted_all_save_and_the_same_command_resumes_and_reports_it(
    command, tiny_task, tmp_path, monkeypatch
):
    words = ["--task", "tiny", "--opt", "adam", "--opt", "sgd", "--seeds", "1"]
    assert command(race, *words, "--out", "whole")[0] == 0
    turns = race.interleave

    def with_a_signal(trials, first):
        for count, turn in enumerate(turns(trials, first)):
            if count == 6:
                signal.raise_signal(signal.SIGINT)
            yield turn

    monkeypatch.setattr(race, "interleave", with_a_signal)
    status, _, stderr = command(race, *words)
    assert status == 130
    assert "the same command resumes it" in stderr
    assert stderr.count("\n") == 1
    assert len(list((tmp_path / "runs").rglob("*.checkpoint"))) == 2
    monkeypatch.setattr(race, "interleave", turns)
    status, stdout, _ = command(race, *words)
    assert status == 0
    assert "Seeds 0 were interrupted and resumed" in stdout
    for one, other in zip(
        *map(records.read_folder, (tmp_path / "whole", tmp_path / "runs")), strict=True
    ):
        assert without_times(one) == without_times(other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "two optimizers or more"),
        (["--opt", "adam"], "two optimizers or more"),
        (["--opt", "adam", "--opt", "shampo"], "did you mean 'shampoo'?"),
        (["--opt", "adam", "--opt", "no_transformation.py"], "not an optax.GradientT"),
        (["--opt", "adam", "--opt", "adam", "--hp", "adam-3.b1=0"], "not among the optimizers"),
        (["--opt", "adam", "--opt", "sgd", "--hosts", "auto"], "on one machine"),
        (["--opt", "adam", "--opt", "sgd", "--protocol", "fixed"], "did you mean 'fixed_teacher'?"),
        (["--opt", "adam", "--opt", "sgd", "--report", "file/report"], "choose another folder"),
        (["--opt", "adam", "--opt", "sgd", "--out", "file/runs"], "choose another folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(command, tiny_task, tmp_path, words, message):
    (tmp_path / "file").touch()
    (tmp_path / "no_transformation.py").write_text("def build(total_steps):\n    return 3\n")
    status, stdout, stderr = command(race, "--task", "tiny", *words)
    assert status == 2
    assert message in stderr
    assert stderr.count("\n") == 1
    assert stdout == ""
    assert not list(tmp_path.rglob("*.jsonl")), "no record is left half-begun"
