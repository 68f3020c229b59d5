"""Muon in the metric of the K-FAC-reduce input factors."""

from ..algoperf.averaging import Averaged
from ..algoperf.contract import Submission
from ..kfac.algoperf import KFACMuon
from ..kfac.sharing import Sharing

# The one setting of the self-tuning ruleset. Source: docs/ablations.md.
SELF_TUNING = {"learning_rate": 0.02, "damping": 1e-2, "schedule_fraction": 0.4}

_submission = Submission(Averaged(KFACMuon(Sharing.REDUCE)), SELF_TUNING)

data_selection, get_batch_size, init_optimizer_state, prepare_for_eval, update_params = _submission.functions
