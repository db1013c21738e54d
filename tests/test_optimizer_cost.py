"""The counter of FLOPs, the share of an update in a step, and the command."""

import jax
import jax.numpy as jnp
import optax
import pandas as pd
import pytest
from jax import lax

from benchmarks import optimizer_cost
from benchmarks.flops import EIGH, flops
from benchmarks.optimizer_cost import SHAPES
from optimizers import registry

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (lambda: A @ B, 2 * 3 * 4 * 5),
        (
            lambda: jnp.einsum("kab,kbc->kac", jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))),
            7 * 2 * 3 * 4 * 5,
        ),
        (lambda: A + A, 12),
        (lambda: A.T.reshape(2, 6), 0),
        (lambda: lax.scan(lambda c, x: (c, x @ B), 0.0, jnp.ones((6, 3, 4)))[1], 6 * 2 * 3 * 4 * 5),
        (lambda: lax.cond(A[0, 0] > 0, lambda: A @ B, lambda: jnp.zeros((3, 5))), 1 + 2 * 3 * 4 * 5),
        (lambda: jnp.linalg.eigh(jnp.eye(32), symmetrize_input=False)[1], EIGH * 32**3),
        (lambda: jax.jit(lambda: A @ B)(), 2 * 3 * 4 * 5),
        (lambda: jnp.sum(A), 12),
        (lambda: lax.platform_dependent(A, cpu=lambda a: a + a, default=lambda a: a + a + a), 12),
        (
            lambda: lax.conv(jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3)), (1, 1), "VALID"),
            2 * (2 * 5 * 6 * 6) * (3 * 3 * 3),
        ),
        (
            lambda: lax.linalg.triangular_solve(jnp.ones((8, 8)), jnp.ones((8, 20)), left_side=True),
            8 * 8 * 20,
        ),
    ],
    ids=[
        "product",
        "batch",
        "elements",
        "layout",
        "loop",
        "branch",
        "eigh",
        "call",
        "sum",
        "platform",
        "convolution",
        "solve",
    ],
)
def test_flops_are_counted(program, expected):
    assert flops(jax.make_jaxpr(program)().jaxpr) == pytest.approx(expected, rel=0.02, abs=3)


def test_an_update_of_shampoo_is_one_per_cent_of_the_papers_step_at_most():
    """R50x1, the paper's batch; the step without the teacher, which is eight times more."""
    params = SHAPES["r50x1"]()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(25.55e6, rel=1e-3)
    optimizer = optax.with_extra_args_support(registry.find("shampoo").build(1000))
    state = jax.eval_shape(optimizer.init, params)
    cost = flops(jax.make_jaxpr(optimizer.update)(params, state, params).jaxpr)
    assert 2e10 < cost < 0.01 * optimizer_cost.step_flops()


def test_the_command_writes_table_and_figure(command, tmp_path):
    words = ["--shapes", "digits", "--opt", "sgd", "--rounds", "1", "--out", tmp_path / "cost"]
    status, stdout, stderr = command(optimizer_cost, *words)
    assert (status, stderr) == (0, "")
    assert "| `sgd` |" in stdout
    frame = pd.read_csv(tmp_path / "cost" / "optimizer_cost.csv").set_index("optimizer")
    assert list(frame.index) == ["adam", "sgd"]
    assert frame.loc["adam", "mean_over_adam"] == frame.loc["adam", "step_over_adam"] == 1
    assert frame.loc["adam", "state_bytes_per_parameter"] == pytest.approx(8, rel=0.01)
    assert frame.loc["sgd", "state_bytes_per_parameter"] == pytest.approx(4, rel=0.01)
    assert (tmp_path / "cost" / "optimizer-cost.png").stat().st_size > 1000


def test_unknown_shapes_are_refused(command):
    status, _, stderr = command(optimizer_cost, "--shapes", "r50")
    assert status == 2
    assert "r50x1" in stderr
