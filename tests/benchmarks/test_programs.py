import jax
import numpy as np
import pytest
from flax import linen as nn

from benchmarks.programs import PROGRAMS, programs, work
from benchmarks.synthetic import SyntheticImages
from submissions.kfac.algoperf import KFAC
from submissions.kfac.sharing import Sharing


class TokenMLP(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, *, train, dropout_rate):
        del train, dropout_rate
        x = x[..., 0]
        return nn.Dense(self.num_classes)((x + nn.gelu(nn.Dense(x.shape[-1])(x))).mean(1))


class TokenWorkload(SyntheticImages):
    """Random tokens in the shape of images: 32 positions of width 16."""

    model, image_shape = TokenMLP(), (32, 16, 1)


def _programs(sharing):
    workload = TokenWorkload()
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
