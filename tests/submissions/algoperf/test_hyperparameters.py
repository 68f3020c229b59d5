import collections

import pytest

from submissions.algoperf import hyperparameters as hparams
from submissions.kfac.algoperf.classical import KFACHyperparameters
from submissions.nadamw.submission import NAdamWHyperparameters


def point(**values):
    return collections.namedtuple("Hyperparameters", values)(**values)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown hyperparameter lr; known are learning_rate, .*beta2"):
        hparams.read(NAdamWHyperparameters, point(lr=0.1))


def test_missing_name():
    with pytest.raises(ValueError, match="missing damping"):
        hparams.read(KFACHyperparameters, point(learning_rate=0.1))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", "fast", "learning_rate is 'fast'; it takes float"),
        ("learning_rate", True, "it takes float"),
        ("learning_rate", float("nan"), "outside"),
        ("one_minus_beta1", 1.5, r"outside \[1e-06, 1\]"),
        ("dropout_rate", -0.1, "outside"),
        ("rows_per_width", 2.5, "it takes int"),
        ("rows_per_width", -1, "outside"),
        ("refresh_share", 0.6, "outside"),
        ("refresh_share", 0.0, "outside"),
        ("fisher", "true", "known are sampled, exact, empirical"),
    ],
)
def test_bad_values_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        hparams.read(KFACHyperparameters, point(**({"learning_rate": 0.1, "damping": 0.1} | {name: value})))


def test_numbers_apart_from_what_compilation_depends_on():
    h = hparams.read(KFACHyperparameters, point(learning_rate=1, damping=0.1, grad_clip=2.0))
    static, numbers = hparams.static_and_numbers(h)
    assert numbers["learning_rate"] == 1.0 and numbers["grad_clip"] == 2.0
    assert dict(static)["dropout_rate"] is None and dict(static)["rows_per_width"] == 4
    other = hparams.read(KFACHyperparameters, point(learning_rate=2.0, damping=0.3, grad_clip=1.0))
    assert hparams.static_and_numbers(other)[0] == static
    dropping = hparams.read(KFACHyperparameters, point(learning_rate=1, damping=0.1, dropout_rate=0.1))
    assert dict(hparams.static_and_numbers(dropping)[0])["dropout_rate"] == 0.1  # a model may branch on it
    without = hparams.read(KFACHyperparameters, point(learning_rate=2.0, damping=0.3))
    assert hparams.static_and_numbers(without)[0] != static
    assert vars(hparams.join(static, numbers)) == vars(h)
