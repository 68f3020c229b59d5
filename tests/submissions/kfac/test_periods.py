import pytest

from submissions.kfac.algoperf.curvature import is_due


def due(period: int, early_steps: int, end: int) -> list[int]:
    return [step for step in range(end) if is_due(step, period, early_steps)]


def test_without_a_beginning_it_recurs_every_period():
    assert due(5, 0, 21) == [0, 5, 10, 15, 20]
    assert due(1, 0, 4) == due(1, 10, 4) == [0, 1, 2, 3]


def test_gaps_grow_with_the_step_up_to_the_period():
    """1 + n // 4 after step n: ones to 4, twos to 8, threes to 14; four is the period."""
    assert due(4, 4, 28) == [0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 22, 26]


@pytest.mark.parametrize(("period", "early_steps"), [(5, 10), (10, 10), (10, 3), (7, 1)])
def test_far_on_it_is_the_period_alone(period, early_steps):
    steps = due(period, early_steps, 400)
    gaps = [later - earlier for earlier, later in zip(steps, steps[1:], strict=False)]
    assert gaps == sorted(gaps) and gaps[-1] == period and max(gaps) == period
    assert gaps.count(period) > 20
