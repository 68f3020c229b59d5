import jax
import numpy as np
import pytest

from benchmarks.growth import TokenWorkload
from benchmarks.programs import PROGRAMS, programs, work
from submissions.kfac.algoperf import KFAC
from submissions.kfac.sharing import Sharing


def _programs(sharing):
    workload = TokenWorkload(width=16, depth=1, positions=32)
    batch = next(workload.synthetic_queue(0, 8))
    return programs(workload, KFAC(sharing), batch, seed=0)


@pytest.mark.slow
def test_what_needs_more_operations():
    flops = {
        sharing: {name: work(program.compiled)["flops"] for name, program in _programs(sharing).items()}
        for sharing in Sharing
    }
    for own in flops.values():
        assert own.keys() == set(PROGRAMS) and own["SGD"] < own["step"] and own["new factors"] < own["refresh"]
    assert flops[Sharing.REDUCE]["new factors"] < flops[Sharing.EXPAND]["new factors"]


def test_a_program_trains_on_what_it_left_behind():
    program = _programs(Sharing.REDUCE)["step"]
    params = [jax.tree.map(np.array, program()[1]) for _ in range(2)]
    assert not np.array_equal(params[0]["Dense_0"]["kernel"], params[1]["Dense_0"]["kernel"])
