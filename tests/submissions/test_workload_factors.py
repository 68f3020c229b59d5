"""Factors of the real models, on batches of the real pipelines, against a loop over unpadded examples, one at a time.

The loop runs the same model, with an interceptor of its own, and knows neither padding nor packing.
"""

import math
from collections import namedtuple
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from submissions.algoperf import hyperparameters as hparams
from submissions.algoperf.problem import Problem
from submissions.kfac import Geometry, LossKind, Sharing, find_layers
from submissions.kfac.accumulation import averaged_values, has_estimates
from submissions.kfac.algoperf import KFAC
from submissions.kfac.fisher import sample_cotangent
from submissions.kfac.groups import group_by_shape, unstack
from submissions.kfac.transform import KFACState
from tests.submissions.slow_factors import assert_close, slow_factors
from workloads.spec import ForwardPassMode

KEY = jax.random.key(3)
# Every program here runs once or twice, so its compilation is what takes time.
COMPILE_QUICKLY = {"xla_backend_optimization_level": 0}
POINT = namedtuple("Point", ["learning_rate", "damping", "dropout_rate", "rows_per_width"])(0.1, 1e-3, 0.0, 0)


class Case(NamedTuple):
    """A workload's parameters, one batch, and what the loop over its examples recorded."""

    workload: Any
    params: Any
    batch: dict[str, Any]
    examples: list[tuple[dict, dict]]
    n_terms: float


def randomised(workload) -> Any:
    """Initial parameters, each entry moved by N(0, 0.1²): neither the head nor a bias is zero."""
    rng = np.random.default_rng(0)
    params, _ = workload.init_model_fn(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), params)


def logits_of(workload, params, inputs):
    return workload.model_fn(params, {"inputs": inputs}, None, ForwardPassMode.EVAL, None, False)[0]


def recorder(workload):
    """-> (params, one example's inputs without padding, cotangent `[n_outputs]`) -> input and output gradient rows."""

    def run(perturbations, params, inputs, cotangent):
        seen = {}

        def record(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if not isinstance(context.module, (nn.Dense, nn.DenseGeneral, nn.Conv)):
                return y
            name = ".".join(context.module.path)
            assert name not in seen, "these models use every layer once"
            seen[name] = args[0], y
            return y + perturbations.get(name, 0.0)

        with nn.intercept_methods(record):
            return jnp.vdot(logits_of(workload, params, inputs)[0], cotangent), seen

    gradients_and_seen = jax.jit(jax.grad(run, has_aux=True), compiler_options=COMPILE_QUICKLY)

    def rows(params, inputs, cotangent) -> tuple[dict, dict]:
        outputs = jax.eval_shape(run, {}, params, inputs, cotangent)[1]
        zeros = {name: jnp.zeros(y.shape, y.dtype) for name, (_, y) in outputs.items()}
        gradients, seen = gradients_and_seen(zeros, params, inputs, cotangent)
        rows_in, rows_out = {}, {}
        for layer in find_layers(params):
            x = np.asarray(seen[layer.name][0])
            if len(layer.kernel_shape) == 4:
                x = patches(x[0], layer.kernel_shape[:2])
            rows_in[layer.name] = x.reshape(-1, layer.d_in)
            rows_out[layer.name] = np.asarray(gradients[layer.name]).reshape(-1, layer.d_out)
        return rows_in, rows_out

    return rows


def patches(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`[height, width, channels]` cut into tiles, row by row."""
    height, width = size
    places = [(i, j) for i in range(0, image.shape[0], height) for j in range(0, image.shape[1], width)]
    return np.stack([image[i : i + height, j : j + width].reshape(-1) for i, j in places])


def make_case(workload, batch, unpadded: dict[int, Any], kind: LossKind) -> Case:
    """`unpadded`: row of the batch -> the example's own inputs, for every row that counts."""
    params = randomised(workload)
    forward = jax.jit(lambda p, inputs: logits_of(workload, p, inputs), compiler_options=COMPILE_QUICKLY)
    logits = forward(params, batch["inputs"])
    cotangent = sample_cotangent(Geometry(kind), logits, batch["weights"], KEY)
    record = recorder(workload)
    examples = [record(params, inputs, cotangent[row]) for row, inputs in unpadded.items()]
    return Case(workload, params, batch, examples, float(batch["weights"].sum()))


@pytest.fixture(scope="module")
def images() -> Case:
    from workloads.images.memory import LabelledImages
    from workloads.images.mnist_vit import MnistVitWorkload

    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
    data = LabelledImages(pixels, np.array([3, 1, 4], np.int32), n_classes=10)
    batch = next(data.evaluation_batches(batch_size=4))
    batch["inputs"][3] = rng.integers(0, 256, (28, 28, 1))
    np.testing.assert_array_equal(batch["weights"], [1, 1, 1, 0])
    unpadded = {row: batch["inputs"][row : row + 1] for row in range(3)}
    return make_case(MnistVitWorkload(), batch, unpadded, LossKind.SOFTMAX)


# The first is a single atom without bonds; the third has no label; the second and last share one compilation.
SMILES = ("C", "CCO", "c1ccccc1C", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "CCN")
LABELS = np.array([1, 0, np.nan, 1, 0], np.float32)[:, None]


@pytest.fixture(scope="module")
def molecules() -> Case:
    from tests.workloads.graph_samples import as_jraph
    from workloads.graphs.b3db import B3dbWorkload
    from workloads.graphs.molecules import featurise
    from workloads.graphs.pipeline import BatchShape, evaluation_batches
    from workloads.graphs.store import pack

    workload = B3dbWorkload()
    graphs = pack([molecule[:3] for molecule in featurise(SMILES)], LABELS, np.zeros(len(SMILES)))
    shape = BatchShape.of(global_batch_size=6, sub_batches=workload.sub_batches)
    batch = next(evaluation_batches(graphs, np.arange(len(SMILES)), shape))
    # Rows 3 and 6 own the padding of the two sub-batches, row 2 is unlabelled, row 7 is empty.
    np.testing.assert_array_equal(batch["weights"][:, 0], [1, 1, 0, 0, 1, 1, 0, 0])
    assert (batch["inputs"].n_node > 0).tolist() == [True] * 7 + [False] and batch["inputs"].n_edge[0] == 0
    unpadded = {row: as_jraph(graphs, index) for row, index in {0: 0, 1: 1, 4: 3, 5: 4}.items()}
    return make_case(workload, batch, unpadded, LossKind.SIGMOID)


def first_estimate(case: Case, sharing: Sharing) -> tuple[dict, set[str]]:
    """K-FAC's first step -> its factors, and the layers about which the batch told nothing."""
    algorithm = KFAC(sharing)
    h = hparams.join(*hparams.static_and_numbers(hparams.read(algorithm.hyperparameters, POINT)))

    def step(params, batch, key):
        problem = Problem(case.workload, batch, None, h.label_smoothing, h.dropout_rate, jax.random.key(0))
        state = algorithm.init(params, None, h)
        return algorithm.refresh(problem, state, params, h, key)

    state = jax.jit(step, compiler_options=COMPILE_QUICKLY)(case.params, case.batch, KEY)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, KFACState))
    state = next(node for node in nodes if isinstance(node, KFACState))
    groups = group_by_shape(find_layers(case.params))
    factors = unstack(groups, averaged_values(state.factors))
    untold = {name for name, is_told in unstack(groups, has_estimates(state.factors)).items() if not is_told}
    return {name: pair for name, pair in factors.items() if name not in untold}, untold


@pytest.mark.parametrize("sharing", [pytest.param(Sharing.EXPAND, marks=pytest.mark.slow), Sharing.REDUCE])
@pytest.mark.parametrize("name", ["images", "molecules"])
def test_factors_of_the_first_step_are_those_of_the_loop(request, name, sharing):
    case = request.getfixturevalue(name)
    expected = slow_factors(case.examples, sharing, case.n_terms)
    assert set(expected) == {layer.name for layer in find_layers(case.params)}
    factors, untold = first_estimate(case, sharing)
    keys = {layer for layer in expected if layer.endswith(".key")}
    # One vector added to every key shifts a query's scores alike, which softmax ignores: reduce sees nothing there.
    assert untold == (keys if sharing is Sharing.REDUCE else set())
    for layer in untold:
        _, of_key = expected.pop(layer)
        assert np.trace(of_key) < 1e-8 * np.trace(expected[layer.removesuffix("key") + "query"][1])
    assert_close(factors, expected)


def test_the_batches_are_hard_enough(molecules):
    """Expand and reduce differ, and padding and the unlabelled molecule would count if they were not masked."""
    a = {s: slow_factors(molecules.examples, s, molecules.n_terms)["Dense_0"][0] for s in Sharing}
    assert np.abs(a[Sharing.EXPAND] - a[Sharing.REDUCE]).max() > 1e-2 * np.abs(a[Sharing.EXPAND]).max()
    graph = molecules.batch["inputs"]
    n_real = sum(len(rows["node_embedding"]) for rows, _ in molecules.examples)
    assert n_real < graph.n_node[:3].sum() + graph.n_node[4:6].sum() < math.prod(graph.nodes.shape[:1])
