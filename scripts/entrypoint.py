"""The container image's commands: `VERB [flags]`, or flags alone for a trial.

docker run IMAGE --workload=ogbg --submission_path=submissions/kfac_reduce
docker run IMAGE sweep --workload=ogbg --submission_path=submissions/kfac_reduce --num_tuning_trials=20
"""

import os
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
# Verb -> script, and its flags whose defaults are the image's folders.
VERBS = {
    "trial": ("run_trial.py", ("data_dir", "experiment_dir", "experiment_name")),
    "sweep": ("run_sweep.py", ("data_dir", "experiment_dir", "experiment_name")),
    "report": ("report.py", ()),
    "prepare": ("prepare_data.py", ("data_dir",)),
    "bench": ("bench_step.py", ("data_dir",)),
}
_USAGE = f"usage: [{'|'.join(VERBS)}|test] [--flags]; flags alone are a trial's; VERB --help lists a verb's flags"


def command(words: list[str], folders: dict[str, str]) -> list[str]:
    """The program and arguments for the image's arguments `words`; `folders` are defaults of flags by name.

    Raises:
        SystemExit: there is no such verb.
    """
    if words in ([], ["--help"], ["help"]):
        raise SystemExit(_USAGE)
    if words[0] == "test":
        what = words[1:] or ["tests/submissions"]  # other tests need files that the image does not have
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *what]
    verb, arguments = ("trial", words) if words[0].startswith("-") else (words[0], words[1:])
    if verb not in VERBS:
        raise SystemExit(f"error: no verb {verb!r}; {_USAGE}")
    script, names = VERBS[verb]
    defaults = [f"--{name}={folders[name]}" for name in names if name in folders]
    return [sys.executable, str(SCRIPTS / script), *defaults, *arguments]  # of a flag given twice the last one counts


def _folders() -> dict[str, str]:
    folders = {
        "data_dir": os.environ.get("ALGOPERF_KFAC_DATA"),
        "experiment_dir": os.environ.get("ALGOPERF_KFAC_EXPERIMENTS"),
    }
    defaults = {name: folder for name, folder in folders.items() if folder}
    return defaults | ({"experiment_name": "experiment"} if "experiment_dir" in defaults else {})


if __name__ == "__main__":
    os.chdir(SCRIPTS.parent)
    program = command(sys.argv[1:], _folders())
    os.execv(program[0], program)
