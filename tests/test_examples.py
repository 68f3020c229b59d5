"""The example programs train and plot, by each of their optimisers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
OTHER_OPTIMIZERS = {"AdamW", "Adam in K-FAC's eigenbasis", "Muon in K-FAC's metric"}
ATTENTION = {f"MultiHeadDotProductAttention_0.{name}" for name in ("query", "key", "value", "out")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "optimizer", "layers", "highest_loss"),
    [  # losses were 1.30 to 1.37 (2.52: the entropy of a character), and 0.008 to 0.13 (2.30: guessing)
        ("linen_transformer", "K-FAC-expand", ATTENTION | {"Embed_0", "Dense_0", "Dense_1", "Dense_2"}, 1.7),
        ("nnx_convnet", "K-FAC-reduce", {"first", "second", "head"}, 0.4),
    ],
)
def test_example(program, optimizer, layers, highest_loss, tmp_path):
    """Its layers have curvature, it plots, and every optimiser's loss ends below a level, with nothing warned of."""
    plot = tmp_path / "loss.png"
    command = [sys.executable, str(EXAMPLES / f"{program}.py"), f"--plot={plot}"]
    env = os.environ | {"MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with_factors = re.findall(r"^  (\S+)\.(?:kernel|embedding) .*: factors", done.stdout, re.MULTILINE)
    losses = {
        name: float(loss) for name, loss in re.findall(r"^(.*): loss (\S+) in the last", done.stdout, re.MULTILINE)
    }
    assert set(with_factors) == layers
    assert set(losses) == OTHER_OPTIMIZERS | {optimizer}
    assert all(loss < highest_loss for loss in losses.values()), losses
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "CurvatureWarning" not in done.stderr
