import io
import subprocess
import sys

from tuning import plain_output


def test_characters_that_an_encoding_lacks_become_plain_ones(monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    plain_output.use()
    for stream in streams.values():
        stream.write("3 × 2 – naïve … µ → ³ 漢 \ud800 plain")
        stream.flush()
        assert stream.buffer.getvalue() == b"3 x 2 - naive ... u -> 3 ? ? plain"


def test_a_table_is_drawn_with_plain_lines():
    code = (
        "from tuning import plain_output; plain_output.use()\n"
        "from rich.console import Console; from rich.table import Table\n"
        "table = Table('a – b'); table.add_row('µ'); Console().print(table)\n"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "| a - b |" in done.stdout and "| u     |" in done.stdout, done
