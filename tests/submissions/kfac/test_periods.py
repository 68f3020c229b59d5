import math

import pytest

from submissions.kfac.algoperf import SOAP
from submissions.kfac.algoperf.curvature import is_due


def due(share: float, end: int) -> list[int]:
    return [step for step in range(end) if is_due(step, share)]


def test_gaps_grow_with_the_step():
    """1 + n // 4 after step n: ones to 4, twos to 8, threes to 11, and so on."""
    assert due(0.25, 40) == [0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 23, 29, 37]
    assert due(0.0, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25])
def test_refreshes_are_as_many_as_the_logarithm_of_the_steps(share):
    """60,000 steps of a full-size run have about 80 at a tenth, of which 10 in the first 10 steps."""
    steps = due(share, 60_000)
    gaps = [later - earlier for earlier, later in zip(steps, steps[1:], strict=False)]
    assert gaps == sorted(gaps) and gaps[-1] > 0.9 * share / (1 + share) * steps[-1]
    expected = 1 / share + math.log(60_000 * share) / math.log(1 + share)
    assert 0.8 * expected < len(steps) < 1.4 * expected


def test_soap_refreshes_after_its_first_steps_and_then_after_every_tenth():
    """Before step 0 there is no gradient to make a basis of."""
    soap = SOAP()
    h = soap.hyperparameters(learning_rate=1e-3)
    assert [step for step in range(31) if soap.is_refresh_due(step, h)] == [1, 2, 3, 10, 20, 30]
