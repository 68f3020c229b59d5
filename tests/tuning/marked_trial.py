"""A short trial of a small model with K-FAC. It marks what it is at, and its clocks count instead of telling the time.

`killed_trials.py` runs it in processes that it kills. A step lasts 1 s, a preparation 0.25 s, an evaluation 10 s and
all else nothing. So every second of a resumed trial can be compared with an undisturbed one's.
"""

import mmap
import os
import signal
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before an installed one

from submissions.algoperf import contract
from tests.tuning.on_several_devices import Images
from tuning import experiment, training, trials_request
from tuning.claim import Claim
from tuning.clock import SubmissionClock
from tuning.processes import Processes
from tuning.submission_run import SubmissionRun
from workloads.spec import Budget, Target

PARTS = ("refresh", "evaluation", "checkpoint", "write")  # the last is the writing of any other file
_N_STEPS, _STEPS_PER_EVALUATION, _CHECKPOINT_PERIOD_S = 24, 6, 4


class Endless(Images):
    """Marks its evaluations."""

    validation_target = test_target = Target("accuracy", float("inf"))
    budget = Budget(_N_STEPS, 10_000, 10_000, eval_period_steps=_STEPS_PER_EVALUATION)

    def __init__(self, marks):
        super().__init__()
        self._marks = marks

    def eval_model(self, *arguments):
        return self._marks.during("evaluation", super().eval_model, *arguments)


class Marks:
    """What a trial is at, in memory that forked processes share.

    Args:
        stop: the process stops itself at the beginning of its n-th such part.
    """

    def __init__(self, stop: tuple[str, int] | None = None):
        self._stop = stop
        n = len(PARTS)
        shared = np.frombuffer(mmap.mmap(-1, 8 * (3 * n + 2)), float)
        self.n_begun, self.n_ended, self.last_s = shared[: 3 * n].reshape(3, n)
        self._steps = shared[3 * n :]
        self._steps[:] = -1

    @property
    def resumed_at(self) -> int:
        """The step at which the training began or went on; -1 before."""
        return int(self._steps[0])

    @property
    def saved(self) -> int:
        """The step of the last checkpoint whose writing has ended; -1 if there is none."""
        return int(self._steps[1])

    @property
    def unfinished(self) -> list[str]:
        """The parts that have begun and not ended."""
        return [part for part, is_begun in zip(PARTS, self.n_begun > self.n_ended, strict=True) if is_begun]

    def during(self, part, function, *arguments):
        """Calls the function, and waits for what it computes."""
        i, began = PARTS.index(part), time.monotonic()
        self.n_begun[i] += 1
        if (part, self.n_begun[i]) == self._stop:
            os.kill(os.getpid(), signal.SIGSTOP)
        result = jax.block_until_ready(function(*arguments))
        self.last_s[i] = time.monotonic() - began
        self.n_ended[i] += 1
        return result

    def note_resumption(self, step: int) -> None:
        self._steps[0] = step

    def note_saved(self, step: int) -> None:
        self._steps[1] = step


def run(folder: Path, name: str, marks: Marks, processes: Processes) -> None:
    """Runs the trial to its end, from its newest checkpoint if it has any."""
    own = dict(batch_size=16, resume=True, checkpoint_period_s=_CHECKPOINT_PERIOD_S, data_dir=str(folder))
    request = experiment.Request("mnist_vit", "submissions/kfac_reduce", str(folder), name, **own)
    workload = Endless(marks)
    changes = [(trials_request.registry, "load", lambda *_: workload), (contract, "LOG_PERIOD", 1)]
    with ExitStack() as stack:
        for owner, attribute, value in [*changes, *_counting_clocks(), *_marking(marks)]:
            stack.enter_context(mock.patch.object(owner, attribute, value))
        experiment.run_experiment(request, processes=processes)


def _counting_clocks():
    now = [0.0]

    def lasting(seconds, function):
        def call(*arguments):
            now[0] += seconds
            return function(*arguments)

        return call

    yield training, "time", SimpleNamespace(perf_counter=lambda: now[0])
    yield training, "SubmissionClock", partial(SubmissionClock, lambda: now[0])
    for name, seconds in {"step": 1.0, "prepare_for_eval": 0.25, "evaluate": 10.0}.items():
        yield SubmissionRun, name, lasting(seconds, getattr(SubmissionRun, name))


def _marking(marks: Marks):
    begin, resume, save = contract.Programs.start, training.Training.resume, Claim.write

    def start(programs, *arguments):
        programs._refresh = partial(marks.during, "refresh", programs._refresh)
        return begin(programs, *arguments)

    def resume_and_note(trial):
        found = resume(trial)
        marks.note_resumption(trial.counters.global_step)
        return found

    def write(claim, path, content):
        is_checkpoint = path.suffix == ".checkpoint"
        marks.during("checkpoint" if is_checkpoint else "write", save, claim, path, content)
        if is_checkpoint:
            marks.note_saved(int(path.stem))

    yield contract.Programs, "start", start
    yield training.Training, "resume", resume_and_note
    yield Claim, "write", write
