"""What decides is an average over many rounds at the end of a trial, and over few of them before."""

import jax
import numpy as np
import pytest
from jax import random

from testbed import open_problem
from testbed.data.arrays import Generated, Part
from testbed.problem.evaluation import ALONG, evaluate
from tests.trials import changed

ROUNDS = 2 * ALONG


def drawn(problem):
    """The same student on images of noise, drawn without end."""

    def draw(arrays, key, n):
        return Part(random.uniform(key, (n, 8, 8, 1)), None)

    source = Generated(draw, held_out=16, rounds=ROUNDS)
    return changed(problem, source=source, name="drawn", augment=None, views_per_input=0)


def mixed(problem):
    return changed(problem, mixed_per_input=ROUNDS)


def kl(problem, params, examples):
    """Of the teacher to the student, averaged over examples."""
    teacher, student = (
        jax.nn.log_softmax(examples.logits),
        jax.nn.log_softmax(problem.logits(params, examples.inputs)),
    )
    return float(np.mean(np.sum(np.exp(teacher) * (teacher - student), axis=-1)))


@pytest.mark.parametrize(
    ("make", "part", "score"), [(drawn, "draws", "kl"), (mixed, "mixed", "mixed_kl")]
)
def test_all_rounds_count_at_the_end_and_two_of_sixty_four_before(tiny, make, part, score):
    problem = make(open_problem(tiny))
    params = problem.init(random.key(0))
    measured = [
        evaluate(problem.task, problem.logits, params, problem.eval_data, e) for e in (True, False)
    ]
    for name, rounds in (("test", ROUNDS), ("validation", ROUNDS // 4)):
        examples = getattr(problem.eval_data.held_out[name], part)
        each = [kl(problem, params, jax.tree.map(lambda x, i=i: x[i], examples)) for i in range(rounds)]
        assert len(set(each)) == rounds, "every round is another one"
        if make is mixed:  # whose strengths differ between rounds, were they not shuffled
            assert np.std(each) < 0.05 * np.mean(each)
        first = each[: -(-rounds // ALONG)]
        expected = [np.mean(each), np.mean(first)]
        np.testing.assert_allclose([m[f"{name}_{score}"] for m in measured], expected, rtol=1e-4)


def test_the_first_round_of_draws_is_the_held_out_part_itself(tiny):
    problem = drawn(open_problem(tiny))
    for part in problem.eval_data.held_out.values():
        np.testing.assert_array_equal(part.draws.inputs[0], part.central.inputs)
