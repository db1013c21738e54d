"""Numbers that a change of structure must not move; `golden.py` compares bits, on one machine."""

import pytest

from testbed.tasks import TASKS
from tests.trials import finish, trial_of

# After 40 steps of `digits`: training KL, held-out KL. Other machines round differently.
GOLDEN = {
    ("adam", "function_matching"): (0.284836, 0.189098),
    ("shampoo", "function_matching"): (0.283093, 0.190147),
    ("schedule_free", "function_matching"): (0.246132, 0.13949),
    ("adam", "fixed_teacher"): (0.0934055, 0.154398),
    ("adam", "independent_noise"): (0.0933473, 0.138837),
    ("adam", "labels"): (0.0882025, 0.513871),
}


@pytest.mark.parametrize(("opt", "protocol"), GOLDEN)
def test_trials_of_40_steps_are_what_they_were(tmp_path, opt, protocol):
    last = finish(trial_of(TASKS["digits"], opt, protocol), tmp_path).measurements[-1]
    assert [last["train_kl"], last["validation_kl"]] == pytest.approx(GOLDEN[opt, protocol], rel=2e-3)
