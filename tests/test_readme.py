"""The README's example runs as it stands."""

import re
from pathlib import Path


def test_the_readmes_training_loop_lowers_its_loss(capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    loss = float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1])
    assert loss < 1.5  # ln 10 = 2.30 at first
