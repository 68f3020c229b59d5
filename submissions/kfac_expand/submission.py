"""K-FAC-expand."""

from ..algoperf.averaging import Averaged
from ..algoperf.contract import Submission
from ..kfac.algoperf import KFAC
from ..kfac.sharing import Sharing

_submission = Submission(Averaged(KFAC(Sharing.EXPAND)))

data_selection, get_batch_size, init_optimizer_state, prepare_for_eval, update_params = _submission.functions
