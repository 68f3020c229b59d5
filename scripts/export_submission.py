"""Exports a submission as one folder, in the form of the official AlgoPerf leaderboard.

python scripts/export_submission.py --submission=kfac_reduce --ruleset=external_tuning --out=exported
"""

from pathlib import Path
from typing import Any

import command
from absl import flags

from tuning import disk, export
from tuning.errors import UserError, one_line
from tuning.ruleset import TuningRuleset

_RULESETS = {ruleset.folder_name: ruleset for ruleset in TuningRuleset}

flags.DEFINE_string("submission", None, "A name under submissions/, or a folder with submission.py.", required=True)
flags.DEFINE_enum("ruleset", None, list(_RULESETS), "Tuning ruleset.", required=True)
flags.DEFINE_string("out", None, "Folder that RULESET/NAME is written to.", required=True)
flags.DEFINE_string("submission_name", "", "Its name on the leaderboard; the folder's if empty.")
flags.DEFINE_string("authors", "The algoperf-kfac authors", "Names, separated by commas.")
flags.DEFINE_string("affiliations", "", "Affiliations, separated by commas.")
flags.DEFINE_string("version", "1.0", "Version of the submission.")


def main(values: dict[str, Any]) -> None:
    name = values["submission"]
    beside = Path(__file__).resolve().parents[1] / "submissions" / name
    info = {field: values[field] for field in ("submission_name", "authors", "affiliations", "version")}
    path = beside if beside.is_dir() else Path(name)
    out = disk.expanded(values["out"], "out")
    try:
        target = export.export(path, _RULESETS[values["ruleset"]], out, info)
    except OSError as error:
        raise UserError(f"cannot write into {str(out)!r} ({one_line(error)}): give another --out") from error
    print(f"written to {target}")


command.run(__name__, main)
