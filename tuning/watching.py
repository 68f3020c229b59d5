"""What shows a trial while it runs, beside its records: a trace of some steps, TensorBoard, Weights & Biases.

All of it is of the first process. Scalars are those of measurements.csv, handed on when that file is written, off the
clock. A trace is on the clock: it waits for the device after its last step, and the profiler itself takes time.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from tuning.errors import UserError

Row = Mapping[str, Any]
_NO_SCALARS = {"global_step", "preemption_count"}


@dataclass(frozen=True)
class Watching:
    """What the user asked for.

    Attributes:
        profile: first and last step of a trace, counted from 0.
        tensorboard: whether to write its event files.
        wandb_project: of Weights & Biases; None for none.
    """

    profile: tuple[int, int] | None = None
    tensorboard: bool = False
    wandb_project: str | None = None

    def refuse_missing(self) -> None:
        """
        Raises:
            UserError: a library that this needs is not installed.
        """
        for flag, is_asked, library in (
            ("tensorboard", self.tensorboard, "tensorboardX"),
            ("wandb_project", self.wandb_project is not None, "wandb"),
        ):
            if is_asked and importlib.util.find_spec(library) is None:
                raise UserError(f"--{flag} needs {library}, which is not installed: run `pip install {library}`")


def steps(text: str) -> tuple[int, int]:
    """ "FIRST:LAST" -> (first, last).

    Raises:
        UserError: it is something else.
    """
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise UserError(f"--profile={text} is not FIRST:LAST, two step numbers from 0 on, as in --profile=10:12")
    return int(first), int(last)


class StepTrace:
    """Begins and ends a trace of JAX's profiler in `folder`; `wanted` None for none. `close` ends one cut short."""

    def __init__(self, wanted: tuple[int, int] | None, folder: Path):
        self._wanted, self._folder, self._is_on = wanted, folder, False

    def before(self, global_step: int) -> None:
        if self._wanted is not None and global_step == self._wanted[0]:
            jax.profiler.start_trace(self._folder)
            self._is_on = True

    def after(self, global_step: int, results: Any) -> None:
        """`results` are the step's, for which the end of the trace waits."""
        if self._is_on and self._wanted is not None and global_step >= self._wanted[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()


class Scalars:
    """The scalars of a trial's rows, shown where the user asked for it; a resumed trial's steps take the place of those
    that were lost.

    Args:
        folder: the trial's.
        first_step: the one that the trial begins or goes on with.
        about: the trial's description, plain data.
    """

    def __init__(self, watching: Watching, folder: Path, first_step: int, about: Mapping[str, Any]):
        self._show: list[Callable[[dict[str, float], int], None]] = []
        self._close: list[Callable[[], None]] = []
        if watching.tensorboard:
            from tensorboardX import SummaryWriter

            # The library names files by the second: one of its own for a trial that goes on within the same second.
            own = f".from_step_{first_step:012d}"
            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None, filename_suffix=own)

            def write(values: dict[str, float], step: int) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

            self._show.append(write)
            self._close.append(writer.close)
        if watching.wandb_project is not None:
            import wandb

            name = f"{about['workload']} {about['submission']} {folder.parents[1].name} trial {about['trial_index']}"
            run = wandb.init(project=watching.wandb_project, name=name, dir=str(folder), config=dict(about))
            self._show.append(lambda values, step: run.log(values, step=step))
            self._close.append(run.finish)

    def __call__(self, row: Row) -> None:
        values = {
            name: float(value)
            for name, value in row.items()
            if name not in _NO_SCALARS and isinstance(value, (int, float))
        }
        for show in self._show:
            show(values, row["global_step"])

    def close(self) -> None:
        for close in self._close:
            close()
