import jax
import numpy as np
import pytest

from benchmarks.growth import TokenWorkload
from benchmarks.programs import STEPS, step_programs
from submissions.kfac.algoperf import KFAC
from submissions.kfac.sharing import Sharing


def _programs(sharing):
    workload = TokenWorkload(width=16, depth=1, positions=32)
    batch = next(workload.synthetic_queue(0, 8))
    return step_programs(workload, KFAC(sharing), batch, seed=0)


@pytest.mark.slow
def test_each_program_adds_operations_to_the_one_before():
    expand, reduce = (_programs(sharing) for sharing in (Sharing.EXPAND, Sharing.REDUCE))
    flops = [expand[name].flops for name in STEPS]
    assert flops == sorted(flops) and len(set(flops)) == len(STEPS)
    factors = {
        name: p["new factors"].flops - p["between refreshes"].flops for name, p in (("e", expand), ("r", reduce))
    }
    assert factors["e"] > factors["r"]


def test_a_program_trains_on_what_it_left_behind():
    program = _programs(Sharing.REDUCE)["refresh"]
    params = [jax.tree.map(np.array, program()[1]) for _ in range(2)]
    assert not np.array_equal(params[0]["Dense_0"]["kernel"], params[1]["Dense_0"]["kernel"])
