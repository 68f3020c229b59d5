"""Calls the contract's functions, and keeps the arrays, input queue and random keys that they share."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from tuning.description import TrialDescription
from tuning.errors import UserError, setup_phase
from tuning.randomness import Keys, Stream
from tuning.submission import Submission

PyTree = Any
EvalResults = list[tuple[int, dict[str, Any]]]


class SubmissionRun:
    """One trial's parameters, model state and optimizer state, and the calls that change them. `set_up` comes first."""

    def __init__(self, description: TrialDescription, workload: Any, submission: Submission):
        self._description, self._workload, self._submission = description, workload, submission
        self._hyperparameters = description.point
        self.needs_train_state = submission.needs_train_state

    def set_up(self) -> None:
        """Builds the input queue, the model and the optimizer state. May raise UserError."""
        description = self._description
        with setup_phase():
            self._keys = Keys(description.rng_seed, description.trial_index)
            if not self._workload.pads_batches:
                _refuse_indivisible(description.batch_size, "batch size")
                _refuse_indivisible(description.eval_batch_size, "evaluation batch size")
            self.input_queue = self._workload._build_input_queue(
                self._keys.of(Stream.DATA),
                "train",
                data_dir=description.data_dir,
                global_batch_size=description.batch_size,
            )
            for split in ("eval_train", "validation", "test"):  # so that a size that cannot be used is refused now
                self._workload._build_input_queue(
                    self._keys.of(Stream.EVAL),
                    split,
                    data_dir=description.data_dir,
                    global_batch_size=description.eval_batch_size,
                )
            params, model_state = self._workload.init_model_fn(self._keys.of(Stream.MODEL_INIT))
            # In the contract's order: optimizer state, parameters, model state.
            self._state = self._init_optimizer_state(params, model_state), params, model_state

    def _init_optimizer_state(self, params: PyTree, model_state: PyTree) -> Any:
        try:
            key = self._keys.of(Stream.OPTIMIZER_INIT)
            return self._submission.init_optimizer_state(
                self._workload, params, model_state, self._hyperparameters, key
            )
        except AttributeError as error:
            if error.obj is not self._hyperparameters:
                raise
            missing = f"submission {self._submission.name!r} needs hyperparameter {error.name!r}"
            raise UserError(f"{missing}; add it to the search space") from error

    @property
    def arrays(self) -> tuple[PyTree, PyTree, PyTree]:
        """Parameters, model state, and the part of the optimizer state that is arrays."""
        optimizer_state, params, model_state = self._state
        return params, model_state, optimizer_state[0]

    @arrays.setter
    def arrays(self, arrays: tuple[PyTree, PyTree, PyTree]) -> None:
        params, model_state, optimizer_arrays = arrays
        self._state = (optimizer_arrays, self._state[0][1]), params, model_state

    def step(self, global_step: int, eval_results: EvalResults, train_state: Mapping[str, Any]) -> bool:
        """Selects a batch and updates; False if the submission ends its training instead."""
        batch = self._submission.data_selection(
            self._workload,
            self.input_queue,
            *self._state,
            self._hyperparameters,
            global_step,
            self._keys.of(Stream.DATA_SELECTION, global_step),
        )
        arguments = self._arguments(global_step, eval_results, Stream.UPDATE)
        if self.needs_train_state:
            arguments["train_state"] = MappingProxyType(train_state)
        try:
            self._state = self._submission.update_params(**arguments, batch=batch)
        except Exception as error:
            # A submission may end its training by this error. The class is the harness's, so it is recognised by name.
            if type(error).__name__ != "TrainingCompleteError":
                raise
            return False
        return True

    def prepare_for_eval(self, global_step: int, eval_results: EvalResults) -> None:
        if self._submission.prepare_for_eval is not None:
            arguments = self._arguments(global_step, eval_results, Stream.PREPARE_FOR_EVAL)
            self._state = self._submission.prepare_for_eval(**arguments)

    def evaluate(self, global_step: int) -> dict[str, float]:
        """{"validation/loss": …} of all splits."""
        _, params, model_state = self._state
        result = self._workload.eval_model(
            self._description.eval_batch_size,
            params,
            model_state,
            self._keys.of(Stream.EVAL, global_step),
            self._description.data_dir,
            None,
            global_step,
        )
        return {name: float(value) for name, value in result.items()}

    def _arguments(self, global_step: int, eval_results: EvalResults, stream: Stream) -> dict[str, Any]:
        optimizer_state, params, model_state = self._state
        return dict(
            workload=self._workload,
            current_param_container=params,
            current_params_types=self._workload.model_params_types,
            model_state=model_state,
            hyperparameters=self._hyperparameters,
            loss_type=self._workload.loss_type,
            optimizer_state=optimizer_state,
            eval_results=eval_results,
            global_step=global_step,
            rng=self._keys.of(stream, global_step),
        )


def _refuse_indivisible(size: int, what: str) -> None:
    n_devices = jax.device_count()
    if size % n_devices:
        raise UserError(f"{what} {size} does not split over {n_devices} devices; use a multiple")
