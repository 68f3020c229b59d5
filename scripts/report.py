"""Reports which training algorithm reaches the target first: a page, figures and tables from trial folders.

python scripts/report.py experiments/sweep --out=report
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import command
from absl import flags
from rich.console import Console

from tuning import disk
from tuning.errors import UserError
from tuning.report import files, page, tables
from tuning.report.protocols import Cost
from workloads import budgets

flags.DEFINE_string("out", "report", "Folder of index.html, the figures and the tables.")
flags.DEFINE_list("references", ["nesterov", "nadamw"], "First-order submissions; ratios are to the best of them.")
flags.DEFINE_enum("rank_by", Cost.STEPS, [*Cost], "Cost that orders the lines; `seconds` include compilation.")
flags.DEFINE_enum(
    "hardware_profile", budgets.V100X8, [*budgets.BUDGETS], "Budgets of official workloads, where none is on record."
)
flags.DEFINE_bool("watch", False, "Write the report again and again, while a sweep runs, until interrupted.")
flags.DEFINE_integer("watch_period_s", 30, "Seconds between two reports.", lower_bound=1)


def main(values: dict[str, Any], folders: list[str]) -> None:
    paths = [disk.expanded(folder) for folder in folders]
    for path in paths:
        if not path.is_dir() and not (path.is_file() and path.name.endswith(files.ARCHIVE_ENDING)):
            raise UserError(
                f"{str(path)!r} is neither a folder nor a {files.ARCHIVE_ENDING} archive; give one with trial folders"
            )
    if not values["watch"]:
        return _write(paths, values)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            _write(paths, values)
            time.sleep(values["watch_period_s"])


def _write(paths: list[Path], values: dict[str, Any]) -> None:
    out, period_s = disk.expanded(values["out"], "out"), values["watch_period_s"] if values["watch"] else 0
    rank_by = Cost(values["rank_by"])
    try:
        summary = page.write(paths, out, values["references"], period_s, rank_by, values["hardware_profile"])
    except OSError as error:
        raise UserError(f"cannot write into {str(out)!r} ({error.strerror}): give another --out") from error
    console = Console(width=None if sys.stdout.isatty() else 200)
    for comparison in summary.comparisons:
        console.print(tables.terminal(comparison))
    for problem in summary.problems:
        print(f"{problem.file} {problem.what}", file=sys.stderr)
    print(out / "index.html", flush=True)


command.run(__name__, main, arguments="name the folders to report on: scripts/report.py EXPERIMENT_DIR … --out=report")
