"""Products of float32 are computed in float32 on every device, whatever its default is."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from optimizers.spec import Spec
from testbed import devices
from testbed.problem import evaluation
from testbed.problem.lessons import make_keys
from testbed.training.compile import make_functions, partition_hyperparameters, program_key
from tests.trials import finish, trial_of


def products(lowered):
    """The products and convolutions of a program, a line each."""
    lines = lowered.as_text().splitlines()
    return [line for line in lines if re.search(r"stablehlo\.(dot_general|convolution)\b", line)]


def rounded(lowered):
    """Those of float32 that a device may compute otherwise."""
    found = products(lowered)
    assert found, "nothing to look at"
    return [line for line in found if line.count("HIGHEST") != 2 and "f64" not in line]


def functions_of(trial, **options):
    optimizer = trial.optimizer
    parts = partition_hyperparameters(optimizer)
    key = program_key(trial.problem, optimizer, trial.total_steps, parts, from_init=False)
    hp = {name: optimizer.hyperparameters[name] for name in parts.traced}
    return make_functions(key, **options), hp


@pytest.mark.parametrize(
    "opt", ["adam", "muon", "soap", "psgd", "shampoo", "sophia", "sam", "lbfgs", "distributed_shampoo"]
)
def test_of_a_step_and_of_its_lesson(tiny, opt):
    trial = trial_of(tiny, opt)
    functions, hp = functions_of(trial)
    state = jax.eval_shape(functions.init, make_keys(0), hp, None)
    step = jax.jit(functions.step).lower(state, trial.problem.source.data, make_keys(0), hp)
    assert rounded(step) == []


def test_of_an_optimizer_that_multiplies_wherever_it_can(tiny):
    """In `init`, in `update`, through `value_fn` and `logits_fn`, and in `eval_params`."""

    def build(total_steps):
        def double(tree):
            return jax.tree.map(lambda x: x @ jnp.eye(x.shape[-1]), tree)

        def update(grads, state, params, *, value_fn, logits_fn, **_):
            del state
            other = jax.grad(value_fn)(params), jax.grad(lambda p: jnp.sum(logits_fn(p)))(params)
            return jax.tree.map(lambda *x: -sum(x), double(grads), *other), double(params)

        return optax.GradientTransformationExtraArgs(double, update)

    evaluated = Spec("products", build, eval_params=lambda state, params: jax.tree.map(
        lambda x: x @ jnp.eye(x.shape[-1]), params))  # fmt: skip
    trial = trial_of(tiny, evaluated)
    functions, hp = functions_of(trial)
    state = jax.eval_shape(functions.init, make_keys(0), hp, None)
    begun = jax.jit(functools.partial(functions.init, start=None)).lower(make_keys(0), hp)
    stepped = jax.jit(functions.step).lower(state, trial.problem.source.data, make_keys(0), hp)
    key = trial.compile().key
    chosen = jax.jit(key.evaluated).lower(state.opt_state, state.params)
    assert [rounded(lowered) for lowered in (begun, stepped, chosen)] == [[], [], []]


def test_of_the_evaluation_and_its_references(tiny):
    problem = trial_of(tiny).problem
    params = jax.eval_shape(problem.init, make_keys(0).weights)
    scored = jax.jit(functools.partial(evaluation.evaluate, problem.task, problem.logits))
    assert rounded(scored.lower(params, problem.eval_data)) == []
    references = jax.jit(functools.partial(evaluation.make_held_out, problem.task, "test"))
    inputs = problem.task.arrays().test.inputs
    assert rounded(references.lower(problem.source.data.teachers, inputs, None)) == []


def test_products_of_bfloat16_are_left_alone():
    """A network in bfloat16 multiplies its factors as they are; what is float32 in it is not rounded."""

    @devices.in_full_precision
    def product(a, b):
        return a @ b

    half = jnp.ones((4, 4), jnp.bfloat16)
    (line,) = products(jax.jit(product).lower(half, half))
    assert line.count("bf16") == 3
    assert jax.config.jax_default_matmul_precision is None, "only inside"


def test_convolutions_too():
    @devices.in_full_precision
    def convolve(x):
        return jax.lax.conv(x, jnp.ones((2, 3, 3, 3)), (1, 1), "SAME")

    assert rounded(jax.jit(convolve).lower(jnp.ones((1, 3, 8, 8)))) == []


def test_it_is_in_the_header(tiny, tmp_path):
    assert finish(trial_of(tiny, steps=10), tmp_path).header["precision"]["matmul"] == "highest"
