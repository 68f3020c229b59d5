"""One kind of model: its layers by name, and the factors of some of them by loops over examples and positions.

A model hands the layers that are compared to `tap`, which while a `Taps` is active reads the input and perturbs the
output. What is captured without taps must make the factors that these rows make.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from submissions.kfac import Fisher, Layer, Layout, Sharing, estimate, trace_layers

_active: list["Taps"] = []


class Case(NamedTuple):
    """A model on one batch.

    Attributes:
        forward: params -> outputs.
        loss: outputs -> (summed loss, number of terms).
        captured: names of the layers that have factors.
        refused: part of a name -> part of the reason why layers of such names have none.
        layers: the layers to ask for; None for those that the forward pass shows.
        tapped: params -> outputs, the same with taps, where the model itself has none.
        rows: tapped layer -> (its input -> `[*positions, d_in]`), where these are not the input itself.
        examples: tapped layer -> the example of each of its positions `[*positions]`, below 0 for padding; by default
            the leading axis is the example.
        has_bias: tapped layer -> whether it has a bias; True by default.
    """

    params: Any
    forward: Callable
    loss: Callable
    layout: Layout
    sharing: Sharing
    captured: set[str]
    refused: Mapping[str, str] = {}
    layers: tuple[Layer, ...] | None = None
    tapped: Callable | None = None
    rows: Mapping[str, Callable] = {}
    examples: Mapping[str, np.ndarray] = {}
    has_bias: Mapping[str, bool] = {}


class Taps:
    """Inputs of tapped layers, and perturbations of their outputs, by name and use."""

    def __init__(self, perturbations: Mapping[str, list] | None):
        self.perturbations, self.inputs, self.outputs = perturbations, {}, {}

    def __enter__(self):
        _active.append(self)
        return self

    def __exit__(self, *_):
        _active.pop()


def tap(name: str, layer: Callable, x: Any) -> Any:
    """`layer(x)`."""
    y = layer(x)
    if not _active:
        return y
    taps = _active[-1]
    uses = taps.inputs.setdefault(name, [])
    uses.append(x)
    taps.outputs.setdefault(name, []).append(y)
    return y if taps.perturbations is None else y + taps.perturbations[name][len(uses) - 1]


def check(case: Case) -> None:
    """Assert what is captured and refused, and the factors of the tapped layers."""
    layers = case.layers or trace_layers(case.params, lambda p: (case.forward(p), None))

    def run(params):
        batch = estimate(
            lambda p: (case.forward(p), None),
            case.loss,
            params,
            layers=layers,
            layout=case.layout,
            sharing=case.sharing,
            fisher=Fisher.EMPIRICAL,
        )
        return batch, _tapped(case, params)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch, (inputs, gradients, n_terms) = jax.jit(run)(case.params)
    assert set(batch.factors) == case.captured
    _check_refused(case, batch.uncaptured)
    compared = sorted(set(inputs) & case.captured)
    assert len(compared) >= 2 or (compared and case.refused)
    for name in compared:
        expected = _slow_factors(case, name, inputs[name], gradients[name], float(n_terms))
        for got, factor in zip(batch.factors[name], expected, strict=True):
            factor = factor if got.shape[0] == got.shape[1] else np.diag(factor)[:, None]
            scale = np.abs(factor).max()
            assert scale > 1e-6
            np.testing.assert_allclose(got, factor, rtol=1e-4, atol=2e-5 * scale, err_msg=name)


def _check_refused(case: Case, reasons: Mapping[str, str]) -> None:
    for name, reason in reasons.items():
        expected = [text for part, text in case.refused.items() if part in name]
        assert expected and expected[0] in reason, f"{name}: {reason}"
    for part in case.refused:
        assert any(part in name for name in reasons), f"{part} was not refused"


def _tapped(case: Case, params: Any) -> tuple[dict, dict, Any]:
    """Inputs and output gradients of the tapped layers, and the number of terms."""
    forward = case.tapped or case.forward

    def shapes():
        with Taps(None) as taps:
            forward(params)
        return taps.outputs

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(shapes))

    def summed(perturbations):
        with Taps(perturbations) as taps:
            loss, n_terms = case.loss(forward(params))
        return loss, (taps.inputs, n_terms)

    gradients, (inputs, n_terms) = jax.grad(summed, has_aux=True)(zeros)
    return inputs, gradients, n_terms


def _slow_factors(case: Case, name: str, inputs: list, gradients: list, n_terms: float) -> tuple:
    """(A, B) by a loop over positions; an example's positions are those of all uses."""
    by_example: dict[int, list[tuple]] = {}
    for x, g in zip(inputs, gradients, strict=True):
        a, g = np.asarray(case.rows.get(name, np.asarray)(x), np.float64), np.asarray(g, np.float64)
        positions = a.shape[: a.ndim - 1]
        g = g.reshape(*positions, -1)
        leading = np.arange(positions[0]).reshape(-1, *[1] * (len(positions) - 1))
        examples = np.broadcast_to(case.examples.get(name, leading), positions)
        for index in np.ndindex(positions):
            row = np.append(a[index], 1.0) if case.has_bias.get(name, True) else a[index]
            if examples[index] >= 0:
                by_example.setdefault(int(examples[index]), []).append((row, g[index]))
    pairs = []
    for own in by_example.values():
        rows, gradients = zip(*own, strict=True)
        if case.sharing is Sharing.REDUCE:
            pairs.append((sum(rows) / len(rows), sum(gradients)))
        else:
            pairs += own
    a = sum(np.outer(row, row) for row, _ in pairs) / len(pairs)
    return a, sum(np.outer(g, g) for _, g in pairs) / n_terms


def patch_rows(window: int, stride: int = 1, padding: int | None = None) -> Callable:
    """Images `[n, height, width, channels]` -> patches `[n, rows, columns, window² channels]`, cut one by one.

    Args:
        padding: zeros on each side of both axes; by default those of "SAME" with stride 1.
    """
    padding = (window - 1) // 2 if padding is None else padding

    def cut(images):
        padded = np.pad(np.asarray(images), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        starts = range(0, padded.shape[1] - window + 1, stride), range(0, padded.shape[2] - window + 1, stride)
        return np.stack(
            [
                np.stack([padded[:, i : i + window, j : j + window].reshape(len(padded), -1) for j in starts[1]], 1)
                for i in starts[0]
            ],
            1,
        )

    return cut


def drawn(shapes: Any, seed: int = 0, scale: float = 0.4) -> Any:
    """Parameters of the shapes given, every entry from N(0, scale²)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def initialised(model: Any, *inputs: Any) -> Any:
    """A Linen model's variables, the parameters drawn by `drawn`."""
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    shapes = jax.eval_shape(lambda: model.init(keys, *inputs))
    others = {name: jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), tree) for name, tree in shapes.items()}
    return others | {"params": drawn(shapes["params"])}


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cross_entropy(labels: jax.Array, weights: jax.Array | None = None) -> Callable:
    """Logits -> (summed loss, number of labels)."""
    weights = jnp.ones(labels.shape) if weights is None else weights

    def loss(logits):
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
        return -(picked * weights).sum(), weights.sum()

    return loss
