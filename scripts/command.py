"""How a script starts and ends: it parses the flags, and prints an error or an interruption as one line.

Each kind of error has an exit code of its own.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that scripts run without installation, too

from tuning.interruption import Interrupted, default_handlers, stop_script, stop_while_importing

if _HANDLERS := default_handlers():  # importing the libraries takes seconds
    for _number in _HANDLERS:
        signal.signal(_number, stop_while_importing)

# XLA's CPU backend calls OpenBLAS for factorisations, whose threads would spin on the cores that XLA's threads need.
# NumPy reads the variable when it is imported, so it is set before.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from absl import app, flags, logging

from tuning import compilation_cache, parent, plain_output
from tuning.errors import UserError, one_line

flags.DEFINE_string("data_dir", "~/data", "Folder of the prepared data sets.")
flags.DEFINE_integer("rng_seed", 0, "Seed of the points and of all trials.", lower_bound=0, upper_bound=2**64 - 1)
_CACHE_DIR = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "algoperf-kfac", "jax")
flags.DEFINE_string("compilation_cache_dir", _CACHE_DIR, "Folder of compiled programs; empty to keep none.")


def run(script: str, main: Callable[..., None], *, arguments: str | None = None) -> None:
    """Calls `main` with the values of the flags, by name: those of `script` (its `__name__`) and of this module.

    Args:
        arguments: the error where no positional argument is given; `main` takes them as its second argument. With None,
            positional arguments are refused.
    """

    def start(argv: list[str]) -> None:
        words = argv[1:]
        if words and arguments is None:
            raise UserError(f"{words[0]!r} is not a flag; write --name=value (--help lists the flags)")
        if not words and arguments is not None:
            raise UserError(arguments)
        defined = flags.FLAGS.get_key_flags_for_module(argv[0]) + flags.FLAGS.flags_by_module_dict()[__name__]
        values: dict[str, Any] = {flag.name: flag.value for flag in defined}
        compilation_cache.use(values.pop("compilation_cache_dir"))
        main(values) if arguments is None else main(values, words)

    for number, handler in _HANDLERS.items():
        is_own = script == "__main__" and number != signal.SIGINT  # Python's own for SIGINT: KeyboardInterrupt
        signal.signal(number, stop_script if is_own else handler)
    if script != "__main__":
        return
    plain_output.use()
    parent.end_with_supervisor()
    try:
        app.run(start, flags_parser=_parse_flags)
    except UserError as error:
        logging.debug("where the error came from", exc_info=True)
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(130)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but bad flags are UserErrors."""
    try:
        words = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(f"{one_line(error)} (--help lists the flags)") from error
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # absl's own default would show JAX's chatter
    return words
