"""Optimizer states of any structure and type: each is carried to the bit, or refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import RequestError
from testbed.problem.distances import CATEGORICAL
from testbed.problem.protocols import Lesson
from testbed.training.checkpoints import Checkpoints
from testbed.training.step import State, as_state, train_step
from tests.test_strangers import Pair, Registered, Unregistered

LESSON = Lesson(jnp.ones((4, 3)), jnp.zeros((1, 4, 2)).at[..., 0].set(1.0), jnp.float32(1))
DTYPES = (
    *("bool", "int4", "int8", "uint8", "int16", "int32", "uint32", "float16", "float32", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "complex64"),
)
SHAPES = st.sampled_from([(), (0,), (1,), (3,), (2, 0), (2, 3)])


def arrays():
    def make(shape, dtype, seed, on_device):
        values = np.random.default_rng(seed).integers(0, 2, shape)
        array = jnp.asarray(values).astype(dtype)
        return array if on_device else np.asarray(array)

    return st.builds(make, SHAPES, st.sampled_from(DTYPES), st.integers(0, 9), st.booleans())


KEYS = st.integers(0, 9).flatmap(
    lambda seed: st.sampled_from([jax.random.key(seed), jax.random.key(seed, impl="rbg")])
)
NUMBERS = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.floats(width=32), st.none())
ODD = st.sampled_from(["text", b"bytes", {1, 2}, Unregistered(), len, np.array(["x"]), {1: 0, "a": 1}])
LEAVES = st.one_of(arrays(), arrays(), arrays(), KEYS, NUMBERS, ODD)


def containers(inner):
    texts = st.sampled_from(["a", "b", "a b", "[0]", "é", ""])
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(texts, inner, max_size=3),
        st.dictionaries(st.integers(0, 3), inner, max_size=2),
        st.builds(Pair, inner, inner),
        st.builds(Registered, inner, texts),
    )


TREES = st.recursive(LEAVES, containers, max_leaves=5)


def drift(leaf):
    """What a careless update does to a number: it changes its type."""
    return leaf + 1.0 if jnp.issubdtype(leaf.dtype, jnp.number) else leaf


def linear(params, inputs):
    return inputs @ params["kernel"]


def start_and_step(tree, change):
    """The state of step 0, and three steps from a state: as in a trial, compiled."""

    def update(grads, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g, grads), jax.tree.map(change, state)

    optimizer = optax.with_extra_args_support(optax.GradientTransformation(lambda params: tree, update))

    def init():
        params = {"kernel": jnp.ones((3, 2))}
        opt_state = as_state("init returned", optimizer.init(params))
        return State(jnp.int32(0), params, opt_state, jnp.float32(0), jnp.bool(True))

    def advance(state):
        def step(state):
            return train_step(state, LESSON, jax.random.key(0), CATEGORICAL, linear, optimizer)[0]

        return jax.lax.while_loop(lambda s: s.step < 3, step, state)

    return jax.jit(init), jax.jit(advance)


def bits(tree):
    raw = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(tree)
    ]
    return [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in raw]


@given(tree=TREES, change=st.sampled_from([lambda leaf: leaf, lambda leaf: leaf, drift]))
def test_a_state_is_carried_and_restored_to_the_bit_or_refused_in_one_line(
    tmp_path_factory, tree, change
):
    init, advance = start_and_step(tree, change)
    refused = ""
    try:
        start = init()
        state = advance(start)
    except RequestError as error:
        refused = str(error)
    if refused:
        assert len(refused.splitlines()) == 1
        assert " at " in refused or "containers" in refused
        return
    assert int(state.step) == 3
    assert jax.tree.structure(state) == jax.tree.structure(start)
    if change is not drift:
        assert bits(state.opt_state) == bits(start.opt_state)
    checkpoints = Checkpoints(tmp_path_factory.mktemp("state") / "x.checkpoint")
    checkpoints.save(state, {"a": 1})
    restored = checkpoints.restore(start)
    checkpoints.close()
    assert restored is not None
    assert restored[1] == {"a": 1}
    assert jax.tree.structure(restored[0]) == jax.tree.structure(state)
    assert bits(restored[0]) == bits(state)
