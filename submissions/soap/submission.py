"""SOAP: Adam in the eigenbasis of the gradient's covariances."""

from ..algoperf.averaging import Averaged
from ..algoperf.contract import Submission
from ..kfac.algoperf import SOAP

_submission = Submission(Averaged(SOAP()))

data_selection, get_batch_size, init_optimizer_state, prepare_for_eval, update_params = _submission.functions
