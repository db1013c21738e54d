"""Many devices, in processes of their own: what is divided, what is moved, what fits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

DIVIDED = """
import dataclasses, sys
from pathlib import Path
import jax, numpy as np
from testbed import devices, records
from testbed.problem import lessons, problem, source
from testbed.tasks import TASKS
from testbed.training.alone import iterate
from tests.trials import trial_of

def load():
    # Few held-out images: every device computes the whole evaluation.
    data = TASKS["digits-resnet"].arrays()
    parts = {name: getattr(data, name) for name in ("validation", "test")}
    few = {n: p._replace(inputs=p.inputs[:32], labels=p.labels[:32]) for n, p in parts.items()}
    return data._replace(**few)

task = dataclasses.replace(
    TASKS["digits-resnet"], source=load, batch_size=16, views_per_input=1, measure_every=5
)

def curve(trial, name):
    for _ in iterate(trial, Path(sys.argv[1]) / name):
        pass
    record = records.read(trial.record_path(Path(sys.argv[1]) / name))
    assert record.end["status"] == "finished", record.end
    return [[m["train_loss"], m["test_kl"], m["test_accuracy"]] for m in record.measurements]

def kept(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

def sizes(trial):
    floats = {n: v for n, v in trial.optimizer.hyperparameters.items() if type(v) is float}
    state = trial.compile().init(lessons.make_keys(0), floats, None)
    teachers = trial.problem.source.data.teachers
    return kept(state.params), kept(teachers), kept(state.opt_state)

def measure(name):
    problem._open.cache_clear()
    source.place_teachers.cache_clear()
    trial = trial_of(task, steps=20, learning_rate=1e-3)
    return curve(trial, name), sizes(trial), trial.compile().checkpointed

devices.use()
whole = measure("whole")
devices.memory = lambda: 1.0  # nothing fits
divided = measure("divided")
np.testing.assert_allclose(whole[0], divided[0], rtol=1e-4)
for one, other in zip(whole[1], divided[1]):
    assert other < one / 6, (one, other)
assert whole[2:] == (False,), whole[2:]
assert divided[2:] == (True,), divided[2:]
"""

COLLECTIVES = """
import argparse, math
from unittest import mock
from benchmarks.results import scaling
from testbed.tasks import TASKS
from tests import stand_ins

args = argparse.Namespace(task="flowers", opt="OPT", devices=8, precision="float32", divide=False)
with mock.patch("testbed.tasks.TASKS", {**TASKS, "flowers": stand_ins.tiny_flowers()}):
    found = scaling.collectives(scaling.compile_step(args))
    from testbed import teachers
    import jax
    shapes = jax.tree.leaves(teachers.shapes(stand_ins.TINY, stand_ins.TEACHER.inputs))
print(found)
gradient = 4 * sum(leaf.size for leaf in shapes)
# The gradient, the loss, and of Shampoo the number of roots that failed.
assert sum(map(sum, found["all-reduce"])) in (gradient + 4, gradient + 8)
assert max(map(sum, found["all-reduce"])) > 0.99 * gradient, "more than one"
assert found["collective-permute"] == [[4 * stand_ins.SIZE**2 * 3]], "mixup's neighbour"
"""
ADAM = """
assert set(found) == {"all-reduce", "collective-permute"}
"""
SHAMPOO = """
assert set(found) == {"all-reduce", "collective-permute", "all-gather"}
from optimizers.parts import blocks
layout = blocks.cut([leaf.shape for leaf in shapes], 128, 4096, 8192)
assert len(found["all-gather"]) <= len(layout.stacks)
padded = sum(4 * (s.size + -s.size % 8) * math.prod(s.shape) for s in layout.stacks)
assert sum(map(sum, found["all-gather"])) <= padded, "more than the directions"
"""


def child(folder: Path, script: str, *arguments: object) -> str:
    quick = "--xla_backend_optimization_level=0"  # a few slow steps, compiled in half the time
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {quick}",
        "JAX_PLATFORMS": "cpu",
    }
    # A file, since a task's identity includes the source of its functions.
    path = folder / "child.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", path, *map(str, arguments)],
        env=os.environ | flags | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_divided_parameters_follow_the_same_curve_and_take_an_eighth(tmp_path):
    """Student, its optimizer's state and the teacher; the student's units are checkpointed as well."""
    child(tmp_path, DIVIDED, tmp_path)


@pytest.mark.parametrize(("opt", "then"), [("adam", ADAM), ("shampoo", SHAMPOO)])
def test_a_step_reduces_one_gradient_and_moves_nothing_unexpected(tmp_path, opt, then):
    child(tmp_path, COLLECTIVES.replace("OPT", opt) + then)
