"""The mode TRAIN that a workload's `model_fn` gets is that of the enum in its annotations."""

import enum

import jax
import pytest

from submissions.algoperf.problem import Problem


class Mode(enum.Enum):
    TRAIN = 0


class Annotated:
    def model_fn(self, params, batch, model_state, mode: Mode, rng, update_batch_norm):
        return mode, model_state


class WithoutAnnotation(Annotated):
    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm):
        return super().model_fn(params, batch, model_state, mode, rng, update_batch_norm)


class Never:
    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm):
        return mode, model_state


def forward(workload):
    return Problem(workload, {}, None, 0.0, None, jax.random.key(0)).forward({})


def test_the_mode_is_of_the_enum_that_the_nearest_annotation_names():
    assert forward(Annotated())[0] is forward(WithoutAnnotation())[0] is Mode.TRAIN


def test_without_an_annotation_the_cure_is_named():
    with pytest.raises(TypeError, match=r"Never\.model_fn must give the type of its argument `mode`"):
        forward(Never())
