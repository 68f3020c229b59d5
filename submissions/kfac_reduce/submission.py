"""K-FAC-reduce."""

from ..algoperf.averaging import Averaged
from ..algoperf.contract import Submission
from ..kfac.algoperf import KFAC
from ..kfac.sharing import Sharing

# The one setting of the self-tuning ruleset. Source: docs/ablations.md.
SELF_TUNING = {"learning_rate": 0.02, "damping": 3e-3, "schedule_fraction": 0.4}

_submission = Submission(Averaged(KFAC(Sharing.REDUCE)), SELF_TUNING)

data_selection, get_batch_size, init_optimizer_state, prepare_for_eval, update_params = _submission.functions
