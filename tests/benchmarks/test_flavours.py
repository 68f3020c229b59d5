import pytest

from benchmarks.flavours import factor_flops, positions_and_width, sides
from submissions.kfac.sharing import Sharing

# A convolution's input and output, one with a wide patch, and an attention kernel's input.
_CHOSEN = {
    "cifar10_wrn": ["conv_stem", "stage_0_block_0.conv_2", "stage_2_block_0.conv_2"],
    "mnist_vit": ["Transformer.encoderblock_0.MultiHeadDotProductAttention_1.query", "conv_patch_extract"],
}


@pytest.mark.parametrize("workload", _CHOSEN)
def test_reduce_saves_at_least_half_of_the_ideal_operations(workload):
    """Ideal: R positions of width d cost an example R d² expanded, R d + d² reduced."""
    n_seen = 0
    for layer, side, use in sides(workload, 8):
        if layer.name not in _CHOSEN[workload]:
            continue
        positions, width = positions_and_width(use)
        saving = factor_flops(side, use, layer, Sharing.EXPAND) / factor_flops(side, use, layer, Sharing.REDUCE)
        assert saving >= 0.5 * positions * width / (positions + width), (layer.name, side)
        n_seen += 1
    assert n_seen == 2 * len(_CHOSEN[workload])


def test_positions_and_width_of_a_convolution_are_those_of_its_patches():
    shapes = {layer.name: positions_and_width(use) for layer, side, use in sides("cifar10_wrn", 2) if side == "A"}
    assert shapes["conv_stem"] == (32 * 32, 3 * 3 * 3)
    assert shapes["stage_1_block_0.conv_1"] == (16 * 16, 9 * 64)
    assert shapes["stage_1_block_0.conv_shortcut"] == (16 * 16, 64)
    assert shapes["head"] == (1, 256)
