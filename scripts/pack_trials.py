"""Packs trial folders into one small archive that scripts/report.py reads: records to commit.

python scripts/pack_trials.py experiments/evidence/b3db --out=results/evidence/b3db.tar.xz
"""

from typing import Any

import command
from absl import flags

from tuning import disk
from tuning.errors import UserError
from tuning.report import archive, files

flags.DEFINE_string("out", None, f"The archive, NAME{files.ARCHIVE_ENDING}.", required=True)


def main(values: dict[str, Any], folders: list[str]) -> None:
    out = disk.expanded(values["out"], "out")
    if not out.name.endswith(files.ARCHIVE_ENDING):
        raise UserError(f"--out={out} must end in {files.ARCHIVE_ENDING}, by which the report recognises archives")
    n = archive.pack([disk.expanded(folder) for folder in folders], out)
    print(f"{n} trials, {out.stat().st_size / 1e3:.0f} kB: {out}")


command.run(
    __name__, main, arguments="name the folders to pack: scripts/pack_trials.py EXPERIMENT_DIR … --out=trials.tar.xz"
)
