"""Training with curvature under the AlgoPerf contract: the only folder here that knows the contract."""

from .adaptive import SOAP, EKFACAdam
from .classical import KFAC
from .muon import KFACMuon

__all__ = ["KFAC", "SOAP", "EKFACAdam", "KFACMuon"]
