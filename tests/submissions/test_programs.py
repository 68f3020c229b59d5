"""The two programs of a submission with curvature: the step, and the refresh that runs before some steps."""

import threading
from collections import namedtuple

import jax
import pytest

from submissions.algoperf.contract import Submission
from submissions.kfac.algoperf import KFAC, SOAP, KFACMuon
from submissions.kfac.sharing import Sharing
from tests.submissions.fake_workload import FakeWorkload, Trial, batches
from tuning.clock import CompileTimer

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("make", [lambda: KFACMuon(Sharing.REDUCE), lambda: KFAC(Sharing.EXPAND), SOAP])
def test_they_compile_once_at_the_same_time(make, monkeypatch):
    """Each compilation waits for the other one to begin. A setting that is this thread's own makes no further ones."""
    workload, batch_list = FakeWorkload(), batches()
    both, compile_one, in_threads = threading.Barrier(2), jax.stages.Lowered.compile, []

    def waiting(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        in_threads.append(threading.current_thread() is not threading.main_thread())
        if in_threads[-1]:  # while K-FAC is traced, the program that finds out the loss's geometry is compiled, too
            both.wait(timeout=60)
        return compile_one(lowered)

    monkeypatch.setattr(jax.stages.Lowered, "compile", waiting)
    names = {"learning_rate": 0.02} | ({"damping": 1e-2} if isinstance(make(), KFAC) else {})
    point = namedtuple("Hyperparameters", names)(**names)
    for _ in range(2):  # the first trial compiles what all share, too
        in_threads.clear()
        trial = Trial(Submission(make()), workload, point)
        with jax.default_matmul_precision("float32"), CompileTimer() as timer:
            trial.run(0, 2, batch_list)
    assert sum(in_threads) == 2 and timer.counts.n_compiles == len(in_threads)
