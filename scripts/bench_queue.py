"""Times the queue of a sweep: 1,000 points whose trials take no time, by eight workers.

python scripts/bench_queue.py --storages=sqlite:///queue.db,postgresql://me@host/empty
"""

from pathlib import Path
from typing import Any

import command
from absl import flags

from benchmarks import queue_overhead
from tuning import machine, records

flags.DEFINE_list("storages", None, "SQLAlchemy URLs of storages without a study 'overhead'.", required=True)
flags.DEFINE_integer("points", 1000, "Points to carry out.", lower_bound=1)
flags.DEFINE_integer("workers", 8, "Worker processes.", lower_bound=1)
flags.DEFINE_string("out", "results/bench/queue.md", "Where the table goes.")


def main(values: dict[str, Any]) -> None:
    table = queue_overhead.table(values["storages"], values["points"], values["workers"])
    text = "\n".join(["# Overhead of a sweep's queue", "", machine.provenance([machine.environment()]), "", table, ""])
    records.write_text(Path(values["out"]), text)
    print(text)


command.run(__name__, main)
