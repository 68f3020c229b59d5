"""Prepares the data sets of the full-size workloads, from downloads or from archives in the manual folder.

python scripts/prepare_data.py --dataset=ogbg_molpcba --data_dir=~/data
"""

from typing import Any

import command
from absl import flags

from tuning.errors import setup_phase
from workloads import preparation

flags.DEFINE_list("dataset", None, f"Data sets, of {', '.join(preparation.data_sets())}.", required=True)
flags.DEFINE_string("manual_dir", None, "Folder of archives downloaded by hand; by default DATA_DIR/downloads/manual.")
flags.DEFINE_bool("overwrite", False, "Remove a prepared data set, and prepare it again.")
flags.DEFINE_bool("allow_other_archives", False, "Accept archives other than the published ones, to try something.")


def main(values: dict[str, Any]) -> None:
    with setup_phase():
        for name in values["dataset"]:
            preparation.prepare(
                name,
                values["data_dir"],
                values["manual_dir"] or f"{values['data_dir']}/downloads/manual",
                overwrite=values["overwrite"],
                allow_other_archives=values["allow_other_archives"],
            )


command.run(__name__, main)
