"""Reports which training algorithm reaches the target first: a page, figures and tables, from trial folders alone.

python scripts/report.py experiments/comparison --out=report
"""

import sys
import time
from pathlib import Path
from typing import Any

import command
from absl import flags
from rich.console import Console

from tuning.errors import UserError
from tuning.report import page, tables

flags.DEFINE_string("out", "report", "Folder of index.html, the figures and the tables.")
flags.DEFINE_list("references", ["nesterov", "nadamw"], "First-order ones; ratios are to the one with fewest steps.")
flags.DEFINE_bool("watch", False, "Write the report again and again, while a sweep runs, until interrupted.")
flags.DEFINE_integer("watch_period_s", 30, "Seconds between.", lower_bound=1)


def main(chosen: dict[str, Any], folders: list[str]) -> None:
    if not folders:
        raise UserError("name the folders to report on: scripts/report.py EXPERIMENT_DIR … --out=report")
    places = [Path(folder).expanduser() for folder in folders]
    for place in places:
        if not place.is_dir():
            raise UserError(f"{str(place)!r} is no folder; give one that holds trial folders")
    out, period_s = Path(chosen["out"]).expanduser(), chosen["watch_period_s"] if chosen["watch"] else 0
    _write(places, out, chosen["references"], period_s)
    try:
        while chosen["watch"]:
            time.sleep(period_s)
            _write(places, out, chosen["references"], period_s)
    except KeyboardInterrupt:
        return


def _write(places: list[Path], out: Path, references: list[str], period_s: int) -> None:
    try:
        summary = page.write(places, out, references, period_s)
    except OSError as error:
        raise UserError(f"cannot write into {str(out)!r} ({error.strerror}): give another --out") from error
    console = Console(width=None if sys.stdout.isatty() else 160)
    for comparison in summary.comparisons:
        console.print(tables.terminal(comparison))
    for problem in summary.problems:
        print(f"{problem.file} {problem.what}", file=sys.stderr)
    print(out / "index.html", flush=True)


command.run(__name__, main, takes_words=True)
