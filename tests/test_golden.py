"""Numbers that a change of structure must not move; `golden.py` compares bits, on one machine."""

import pytest

from testbed.tasks import TASKS
from tests.trials import finish, trial_of

# After 40 steps of `digits`: training KL, held-out KL. Other machines round differently.
GOLDEN = {
    ("adam", "function_matching"): (0.195667, 0.130323),
    ("shampoo", "function_matching"): (0.192973, 0.122115),
    ("schedule_free", "function_matching"): (0.172415, 0.1075),
    ("adam", "fixed_teacher"): (0.0864644, 0.126506),
    ("adam", "independent_noise"): (0.0817463, 0.106373),
    ("adam", "labels"): (0.0480733, 0.423772),
}


@pytest.mark.parametrize(("opt", "protocol"), GOLDEN)
def test_trials_of_40_steps_are_what_they_were(tmp_path, opt, protocol):
    last = finish(trial_of(TASKS["digits"], opt, protocol), tmp_path).measurements[-1]
    assert [last["train_kl"], last["validation_kl"]] == pytest.approx(GOLDEN[opt, protocol], rel=2e-3)
