"""Shampoo with its blocks divided over devices; each test in a process of its own, under a time limit.

Several independent batched eigendecompositions in one program can deadlock on CPU: the time limit
would show that.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = """
import sys
import jax, jax.numpy as jnp, numpy as np
from optimizers.shampoo import scale_by_shampoo

SHAPES = {"a": (64, 48), "b": (3, 3, 16, 16), "c": (40,), "d": (33, 65), "e": ()}
EXPLICIT = sys.argv[2:] == ["explicit"]


def gradients(step):
    rng = np.random.default_rng(step)  # numpy's: nothing to compile
    return {n: np.asarray(rng.normal(size=s), np.float32) for n, s in SHAPES.items()}


def optimizer():
    return scale_by_shampoo(interval=3, block=16)


def run(steps, devices):
    kind = jax.sharding.AxisType.Explicit if EXPLICIT else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((devices,), ("data",), (kind,), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        zeros = jax.tree.map(jnp.zeros_like, gradients(0))
        state = jax.jit(optimizer().init)(zeros)
        update, updates = jax.jit(optimizer().update), []
        compiled = update.lower(gradients(0), state).compile()
        for step in range(steps):
            u, state = update(gradients(step), state)
            updates.append(jax.device_get(u))
    return updates, state, compiled
"""

EQUAL = """
plain, before, _ = run(12, 1)
for devices in (2, 8):
    divided, state, _ = run(12, devices)
    assert int(state.failures) == int(before.failures) == 0
    for one, many in zip(before.blocks, state.blocks):
        for a, b in zip(one.roots, many.roots):
            np.testing.assert_allclose(a, np.asarray(b)[: len(a)], rtol=1e-3, atol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), plain, divided)
"""

MEMORY = """
SHAPES = {"a": (64, 48), "b": (64, 16), "c": (128,)}  # remainders would be padded to 8

def bytes_of(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))

_, one, alone = run(1, 1)
_, eight, divided = run(1, 8)
rest = bytes_of(one) - bytes_of(one.blocks) + bytes_of(gradients(0))
shares = [p.memory_analysis().argument_size_in_bytes - rest for p in (alone, divided)]
assert abs(shares[0] / bytes_of(one.blocks) - 1) < 0.01, shares
assert abs(shares[1] / bytes_of(eight.blocks) - 1 / 8) < 0.01, shares
print("share of a device:", shares[1] / shares[0])
"""

MANY = """
run(300, int(sys.argv[1]))
"""


QUICK = "--xla_backend_optimization_level=0"  # slower steps, compiled sooner


def child(script: str, devices: int, *arguments: str, xla: str = "") -> str:
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {xla}",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MODEL + script, str(devices), *arguments],
        env=os.environ | flags,
        cwd=Path(__file__).parents[1],
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("axes", ["auto", "explicit"])
def test_divided_over_2_and_8_devices_equals_1(axes):
    child(EQUAL, 8, axes, xla=QUICK)


def test_a_device_of_eight_keeps_an_eighth_of_statistics_and_roots():
    """Measured from the compiled program."""
    assert float(child(MEMORY, 8, xla=QUICK).split()[-1]) == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("devices", [1, 8])
def test_many_steps_of_many_blocks_do_not_deadlock(devices):
    child(MANY, devices)
