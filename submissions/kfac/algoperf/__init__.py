"""Training with curvature under the AlgoPerf contract: the only folder here that knows the contract."""

from .classical import KFAC
from .muon import KFACMuon
from .soap import SOAP

__all__ = ["KFAC", "SOAP", "KFACMuon"]
