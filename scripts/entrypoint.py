"""The container image's commands: `VERB [flags]`, or flags alone for a trial.

docker run IMAGE --workload=ogbg --submission_path=submissions/kfac_reduce
docker run IMAGE sweep --workload=ogbg --submission_path=submissions/kfac_reduce --num_tuning_trials=20
"""

import os
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
_EXPERIMENT = ("--data_dir={data}", "--experiment_dir={experiments}", "--experiment_name=experiment")
# Verb -> script, and its flags whose defaults are in the image's folders.
VERBS = {
    "trial": ("run_trial.py", _EXPERIMENT),
    "sweep": ("run_sweep.py", _EXPERIMENT),
    "report": ("report.py", ("--out={experiments}/report",)),
    "prepare": ("prepare_data.py", ("--data_dir={data}",)),
    "bench": ("bench_step.py", ("--data_dir={data}", "--out={experiments}/bench")),
}
_USAGE = f"usage: [{'|'.join(VERBS)}|test] [--flags]; flags alone are a trial's; VERB --help lists a verb's flags"


def command(words: list[str], folders: dict[str, str]) -> list[str]:
    """The program and arguments for the image's arguments `words`.

    Args:
        folders: the image's "data" and "experiments"; empty for no defaults.

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
    script, flags = VERBS[verb]
    defaults = [flag.format(**folders) for flag in flags] if folders else []
    return [sys.executable, str(SCRIPTS / script), *defaults, *arguments]  # of a flag given twice the last one counts


def _folders() -> dict[str, str]:
    folders = {"data": os.environ.get("ALGOPERF_KFAC_DATA"), "experiments": os.environ.get("ALGOPERF_KFAC_EXPERIMENTS")}
    return {name: folder for name, folder in folders.items() if folder} if all(folders.values()) else {}


if __name__ == "__main__":
    os.chdir(SCRIPTS.parent)
    program = command(sys.argv[1:], _folders())
    os.execv(program[0], program)
