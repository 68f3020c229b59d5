import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.workloads.graph_samples import random_graphs
from workloads import registry
from workloads.dropout import Dropout
from workloads.evaluation import Predictor
from workloads.graphs.b3db import B3dbWorkload
from workloads.graphs.pipeline import BatchShape, evaluation_batches
from workloads.random_keys import host_seed
from workloads.spec import Direction, ForwardPassMode, ParameterType, ShapeTuple, Target


def test_unknown_workload_lists_the_known_ones_in_one_line():
    with pytest.raises(ValueError) as error:
        registry.load("mnist")
    listed = ", ".join(registry.names())
    assert str(error.value) == f"unknown workload 'mnist'; known workloads: {listed}" and "mnist_vit" in listed


_PUBLISHED_OUTPUTS = {"b3db": 1, "mnist": 10, "cifar10": 10, "ogbg": 128, "imagenet": 1000, "pydoc": 103}


# The variants of full-size models are checked in test_full_size_models.py, which initialises them, too.
_NAMES = [name for name in registry.names() if not name.startswith(("ogbg_", "imagenet_vit_"))]


@pytest.mark.parametrize("name", _NAMES)
def test_contract(name):
    initialised(name)


def initialised(name):
    """A workload and its parameters, which are what the contract demands."""
    workload = registry.load(name)
    hints = typing.get_type_hints(type(workload).model_fn)
    assert hints["mode"] is ForwardPassMode and hints["mode"].TRAIN is ForwardPassMode.TRAIN
    with pytest.raises(ValueError, match="init_model_fn first"):
        _ = workload.param_shapes
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    assert state is None and {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.tree.map(lambda x: ShapeTuple(x.shape), params) == workload.param_shapes
    assert jax.tree.structure(workload.model_params_types) == jax.tree.structure(params)
    outputs = [key for key in params if workload.is_output_params(key)]
    assert len(outputs) == 1
    n_outputs = params[outputs[0]]["kernel"].shape[1]
    assert n_outputs == _PUBLISHED_OUTPUTS.get(name.split("_")[0], n_outputs)
    return workload, params


def test_parameter_types_of_both_models():
    vit = registry.load("mnist_vit")
    vit.init_model_fn(jax.random.PRNGKey(0))
    types = vit.model_params_types
    block = types["Transformer"]["encoderblock_0"]
    attention = block["MultiHeadDotProductAttention_1"]
    kernels = [attention[name]["kernel"].name for name in ("query", "key", "value", "out")]
    assert kernels == ["ATTENTION_Q", "ATTENTION_K", "ATTENTION_V", "ATTENTION_OUT"]
    assert attention["query"]["bias"] is ParameterType.ATTENTION_BIAS
    assert block["LayerNorm_0"]["scale"] is ParameterType.LAYER_NORM_SCALE
    assert types["Transformer"]["encoder_layernorm"]["bias"] is ParameterType.LAYER_NORM_BIAS
    assert types["conv_patch_extract"]["kernel"] is ParameterType.CONV_WEIGHT
    assert types["head"] == {"kernel": ParameterType.WEIGHT, "bias": ParameterType.BIAS}
    graph = registry.load("b3db")
    graph.init_model_fn(jax.random.PRNGKey(0))
    assert graph.model_params_types["node_embedding"]["kernel"] is ParameterType.EMBEDDING
    assert graph.model_params_types["Dense_0"]["kernel"] is ParameterType.WEIGHT


def test_target_is_reached_at_its_value_and_never_by_nan_or_when_unset():
    higher, lower = Target("accuracy", 0.5), Target("loss", 0.5, Direction.LOWER_IS_BETTER)
    assert higher.is_reached(0.5) and higher.is_reached(0.6) and not higher.is_reached(0.49)
    assert lower.is_reached(0.5) and lower.is_reached(0.4) and not lower.is_reached(0.51)
    for target in (higher, lower):
        assert not target.is_reached(math.nan) and not target.is_reached(math.inf)
    assert not Target("loss", math.inf, Direction.LOWER_IS_BETTER).is_reached(0.1)
    assert not Target("accuracy", math.inf).is_reached(1.0)


class _WithFlax(nn.Module):
    @nn.compact
    def __call__(self, x, rate):
        return nn.Dropout(rate, deterministic=False, name="drop")(x)


class _WithOurs(nn.Module):
    deterministic: bool = False

    @nn.compact
    def __call__(self, x, rate):
        return Dropout(self.deterministic, name="drop")(x, rate)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_is_flaxs_with_a_static_and_with_a_traced_rate(rate):
    x, rngs = jnp.arange(1.0, 200.0), {"dropout": jax.random.PRNGKey(4)}
    expected = _WithFlax().apply({}, x, rate, rngs=rngs)
    np.testing.assert_allclose(_WithOurs().apply({}, x, rate, rngs=rngs), expected, rtol=1e-6)
    traced = jax.jit(lambda r: _WithOurs().apply({}, x, r, rngs=rngs))
    np.testing.assert_allclose(traced(rate), expected, rtol=1e-6)
    gradient = jax.grad(lambda y: _WithOurs().apply({}, y, jnp.float32(rate), rngs=rngs).sum())(x)
    np.testing.assert_allclose(gradient, expected / x, rtol=1e-6)


def test_dropout_costs_nothing_when_off():
    x = jnp.ones(3)
    assert not jax.make_jaxpr(lambda y: _WithOurs().apply({}, y, 0.0))(x).eqns
    assert not jax.make_jaxpr(lambda y, r: _WithOurs(deterministic=True).apply({}, y, r))(x, 0.5).eqns


def test_evaluation_does_not_depend_on_batching_and_compiles_once():
    workload, graphs = B3dbWorkload(), random_graphs(40, n_tasks=1)
    params, _ = workload.init_model_fn(jax.random.PRNGKey(1))
    predictor, results = Predictor(workload), []
    for shape in (BatchShape(2, 4), BatchShape(1, 30)):
        for _ in range(2):
            results.append(predictor(params, None, evaluation_batches(graphs, np.arange(40), shape)))
    assert predictor._forward._cache_size() == 2
    labelled = int((graphs.labels >= 0).sum())
    for result in results:
        real = result.weights > 0
        assert real.sum() == labelled
        np.testing.assert_allclose(result.logits[real], results[0].logits[results[0].weights > 0], rtol=1e-4, atol=1e-5)
        labels, logits = result.targets[real].astype(float), result.logits[real].astype(float)
        assert result.mean_loss == pytest.approx(np.mean(np.logaddexp(0, logits) - labels * logits), rel=1e-5)


def test_eval_model_reports_every_split_and_eval_train_is_fixed_and_within_train(monkeypatch):
    graphs = random_graphs(1200, n_tasks=1)
    graphs.split_codes[::7] = 2
    workload = B3dbWorkload()
    monkeypatch.setattr(workload, "_load", lambda data_dir: graphs)
    params, _ = workload.init_model_fn(jax.random.PRNGKey(0))
    result = workload.eval_model(256, params, None, jax.random.PRNGKey(0), None, None, 0)
    names = {
        f"{part}/{name}" for part in ("train", "validation", "test") for name in ("loss", "mean_average_precision")
    }
    assert set(result) == names | {"validation/num_examples", "test/num_examples"}
    chosen = workload._evaluated(graphs, "eval_train")
    np.testing.assert_array_equal(chosen, workload._evaluated(graphs, "eval_train"))
    assert set(chosen) <= set(graphs.indices("train"))


def test_host_seed_is_the_same_for_raw_and_typed_keys():
    assert host_seed(jax.random.PRNGKey(7)) == host_seed(jax.random.key(7)) == (0, 7)
    assert host_seed(7) == (7,)
