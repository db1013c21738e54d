import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from scipy.special import rel_entr, softmax

from testbed.problem import distances


@pytest.fixture
def logits():
    teacher, student = random.normal(random.key(0), (2, 16, 10)) * 5
    return teacher, student


@pytest.mark.parametrize("t", [1.0, 2.0, 10.0])
def test_kl_equals_scipys(logits, t):
    teacher, student = (np.asarray(x, np.float64) for x in logits)
    expected = t**2 * rel_entr(softmax(teacher / t, -1), softmax(student / t, -1)).sum(-1)
    np.testing.assert_allclose(distances.kl(*logits, t), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [1.0, 5.0])
def test_gradient_of_kl_is_that_of_big_vision(logits, t):
    """t * (softmax(s / t) - softmax(T / t)), docs/protocol.md."""
    teacher, student = logits
    gradient = jax.grad(lambda s: jnp.sum(distances.kl(teacher, s, t)))(student)
    expected = t * (jax.nn.softmax(student / t) - jax.nn.softmax(teacher / t))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_kl_of_equal_functions_is_zero_and_stays_finite_for_certain_teachers(logits):
    teacher, student = logits
    np.testing.assert_allclose(distances.kl(teacher, teacher + 3), 0, atol=1e-5)
    certain = jnp.where(jnp.arange(10) == 3, 0.0, -1e9)
    np.testing.assert_allclose(
        distances.kl(certain[None], student), -jax.nn.log_softmax(student)[:, 3], rtol=1e-5
    )


def test_sum_of_distances_has_the_gradient_of_matching_the_ensemble():
    teachers = random.normal(random.key(0), (3, 16, 10)) * 3
    student = random.normal(random.key(1), (16, 10))
    summed = jax.grad(lambda s: jnp.sum(distances.kl(teachers, s[None])))(student)
    average = distances.ensemble(teachers)
    np.testing.assert_allclose(jnp.exp(average), jnp.mean(jax.nn.softmax(teachers), axis=0), rtol=1e-4)
    matched = jax.grad(lambda s: 3 * jnp.sum(distances.kl(average, s)))(student)
    np.testing.assert_allclose(summed, matched, atol=1e-5)


def test_agreement_and_accuracy_count_argmaxima():
    teacher = jnp.eye(3)
    student = jnp.asarray([[2.0, 1, 0], [0, 1, 2], [0, 1, 2]])
    np.testing.assert_array_equal(distances.agreement(teacher, student), [1, 0, 1])
    np.testing.assert_array_equal(distances.accuracy(jnp.asarray([0, 1, 2]), student), [1, 0, 1])


@pytest.mark.parametrize("t", [1.0, 2.0])
def test_bernoulli_kl_is_that_of_two_classes(t):
    """A logit x is two classes with logits x and 0."""
    teacher, student = random.normal(random.key(0), (2, 16, 10)) * 5
    pairs = (jnp.stack([x, jnp.zeros_like(x)], -1) for x in (teacher, student))
    expected = distances.kl(*pairs, t)
    np.testing.assert_allclose(
        distances.bernoulli_kl(teacher, student, t), expected, rtol=1e-4, atol=1e-5
    )


def test_the_bernoulli_ensemble_averages_probabilities():
    teachers = random.normal(random.key(0), (3, 16, 10)) * 3
    average = jax.nn.sigmoid(distances.bernoulli_ensemble(teachers))
    np.testing.assert_allclose(average, jnp.mean(jax.nn.sigmoid(teachers), axis=0), rtol=1e-4)
