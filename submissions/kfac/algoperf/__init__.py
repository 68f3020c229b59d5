"""Training with curvature under the AlgoPerf contract: the only folder here that knows the contract."""

from .adaptive import SOAP, EKFACAdam
from .classical import KFAC

__all__ = ["KFAC", "SOAP", "EKFACAdam"]
