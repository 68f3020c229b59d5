"""`algoperf.spec`: the contract's enums and the names of its types."""

from typing import Any

from workloads.spec import ForwardPassMode, LossType, ParameterType, ShapeTuple, Workload

__all__ = ["ForwardPassMode", "LossType", "ParameterType", "ShapeTuple", "TrainingCompleteError", "Workload"]


class TrainingCompleteError(Exception):
    """Raised by `update_params` to end the training."""


# Names that submissions use in annotations alone.
Tensor = Shape = RandomState = Hyperparameters = OptimizerState = Any
ParameterKey = ParameterContainer = ParameterTypeTree = ParameterShapeTree = Any
ModelAuxiliaryState = ModelInitState = UpdateReturn = Timing = Steps = Any
