"""Displays of a running trial besides its records: a trace of some steps, TensorBoard, Weights & Biases.

Only the first process has them. The scalars are those of measurements.csv. They are passed on when that file is
written, off the clock. A trace is on the clock: it waits for the device after its last step, and profiling takes time.
"""

import importlib.util
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from tuning import records
from tuning.errors import UserError, one_line

Row = Mapping[str, Any]
_LOG = logging.getLogger(__name__)
_WANDB_ID = "wandb_id"  # file in a trial's folder with the id of its run there, which a resumed trial continues
_NO_SCALARS = {"global_step", "preemption_count"}


@dataclass(frozen=True)
class Monitoring:
    """Which displays the user asked for.

    Attributes:
        profile: first and last step of a trace, counted from 0.
        tensorboard: whether to write its event files.
        wandb_project: project of Weights & Biases; None for no such display.
    """

    profile: tuple[int, int] | None = None
    tensorboard: bool = False
    wandb_project: str | None = None

    def check_libraries(self) -> None:
        """Checks that the libraries of the displays are installed.

        Raises:
            UserError: a library of one of the displays is not installed.
        """
        for flag, is_asked, library in (
            ("tensorboard", self.tensorboard, "tensorboardX"),
            ("wandb_project", self.wandb_project is not None, "wandb"),
        ):
            if is_asked and importlib.util.find_spec(library) is None:
                raise UserError(f"--{flag} needs {library}, which is not installed: run `pip install {library}`")


def parse_steps(text: str) -> tuple[int, int]:
    """ "FIRST:LAST" -> (first, last).

    Raises:
        UserError: the text has another form.
    """
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise UserError(f"--profile={text} is not FIRST:LAST, two step numbers from 0 on, as in --profile=10:12")
    return int(first), int(last)


class StepTrace:
    """A trace by JAX's profiler in `folder`, of the first to the last of `steps`; None for no trace.

    `close` ends a trace before its last step.

    Attributes:
        traced: first and last step of the trace so far; None before it began.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        self._steps, self._folder, self._is_on = steps, folder, False
        self.traced: tuple[int, int] | None = None

    def before(self, global_step: int) -> None:
        if self._steps is not None and global_step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._is_on = True

    def after(self, global_step: int, results: Any) -> None:
        """Ends the trace after its last step, once the `results` of the step are computed."""
        if not self._is_on or self._steps is None:
            return
        self.traced = self._steps[0], global_step
        if global_step >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
        if self._steps is not None and self.traced is None:
            _LOG.warning("--profile=%d:%d traced nothing: its first step was not among this run's", *self._steps)


class Scalars:
    """Shows the scalars of a trial's rows. After a resumption, steps that were lost are overwritten.

    Args:
        folder: the trial's folder.
        first_step: the step with which this process begins.
        description: the trial's description, plain data.
    """

    def __init__(self, monitoring: Monitoring, folder: Path, first_step: int, description: Mapping[str, Any]):
        self._show: list[Callable[[dict[str, float], int], None]] = []
        self._close: list[Callable[[], None]] = []
        if monitoring.tensorboard:
            from tensorboardX import SummaryWriter

            # The library names files by the second, in which a trial may end and resume; the suffix tells them apart.
            suffix = f".from_step_{first_step:012d}"
            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step, filename_suffix=suffix)

            def write(values: dict[str, float], step: int) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

            self._show.append(write)
            self._close.append(writer.close)
        if monitoring.wandb_project is not None:
            import wandb

            parent, trial = folder.parents[1], f"trial {description['trial_index']}"
            is_study = parent.name.startswith("study_")
            experiment = f"{parent.parent.name}/{parent.name}" if is_study else parent.name
            name = f"{description['workload']} {description['submission']} {experiment} {trial}"
            id_file = folder / _WANDB_ID
            if first_step == 0 or not id_file.exists():
                records.write_text(id_file, uuid.uuid4().hex)
            try:
                run = wandb.init(
                    project=monitoring.wandb_project,
                    name=name,
                    group=experiment,
                    id=id_file.read_text(encoding="utf-8"),
                    resume="allow",
                    dir=str(folder),
                    config=dict(description),
                )
            except wandb.Error as error:
                cure = "run `wandb login`, or set WANDB_MODE=offline"
                raise UserError(f"Weights & Biases cannot be used ({one_line(error)}): {cure}") from error
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
