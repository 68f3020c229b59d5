"""Compares kfac-jax with this K-FAC on a stack of Dense layers: their factors, and seconds per step.

kfac-jax is no dependency. Install it from its repository, google-deepmind/kfac-jax, at a commit that supports the
installed JAX.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.synthetic import SyntheticImages
from benchmarks.timing import in_turn, markdown
from submissions.algoperf.contract import Submission
from submissions.kfac.algoperf import KFAC
from submissions.kfac.algoperf.curvature import FACTOR_SHARE
from submissions.kfac.estimate import estimate
from submissions.kfac.fisher import Fisher, Geometry, LossKind
from submissions.kfac.layers import find_layers
from submissions.kfac.sharing import Sharing, batch_layout
from tuning.search_space import as_hyperparameters

PERIOD = 5  # of both libraries' factors and inverses
_N_INPUTS, _N_CLASSES, _DEPTH = 784, 10, 3
_LEARNING_RATE, _DAMPING, _DECAY, _MOMENTUM = 1e-3, 1e-2, 0.95, 0.9


class MLP(nn.Module):
    """[batch, height, width, 1] -> logits [batch, num_classes]."""

    width: int
    num_classes: int = _N_CLASSES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        del train, dropout_rate
        x = x.reshape(x.shape[0], -1)
        for _ in range(_DEPTH - 1):
            x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.num_classes)(x)


class MLPWorkload(SyntheticImages):
    image_shape = (28, 28, 1)
    step_hint = 1000

    def __init__(self, width: int):
        super().__init__()
        self.model = MLP(width)


def available() -> bool:
    return importlib.util.find_spec("kfac_jax") is not None


def version() -> str:
    return importlib.metadata.version("kfac-jax")


def factors_table(width: int, batch_size: int, seed: int) -> str:
    """A row for each factor of the exact Fisher on one batch: the largest difference, relative to the largest entry."""
    workload = MLPWorkload(width)
    batch, params = _start(workload, batch_size, seed)
    layers = find_layers(params)
    factors = estimate(
        lambda p: (_logits(workload, p, batch), None),
        lambda z: (_summed_loss(z, batch), jnp.asarray(batch_size)),
        params,
        layers=layers,
        layout=batch_layout(batch_size),
        sharing=Sharing.EXPAND,
        fisher=Fisher.EXACT,
        geometry=Geometry(LossKind.SOFTMAX),
        key=jax.random.PRNGKey(seed),
    ).factors
    optimizer = _optimizer(workload, "fisher_exact")
    state = optimizer.init(params, jax.random.PRNGKey(seed), batch)
    _, state, _ = _kfac_jax_step(optimizer, params, state, batch, 0, seed)
    theirs = _kfac_jax_factors(state)
    rows = []
    for layer in layers:
        for side, ours in zip("AB", factors[layer.name], strict=True):
            if ours is not None:
                difference = min(_difference(np.asarray(ours), other) for other in theirs)
                rows.append([layer.name, side, f"{len(ours)}", f"{difference:.1e}"])
    return markdown(["layer", "factor", "width", "relative difference"], rows)


def steps_table(widths: Sequence[int], batch_size: int, *, n_rounds: int, seed: int) -> str:
    """A row for each width: milliseconds per step of both libraries, averaged over whole periods."""
    rows = []
    for width in widths:
        blocks = {"this": _own_block(width, batch_size, seed), "kfac-jax": _kfac_jax_block(width, batch_size, seed)}
        seconds = in_turn(blocks, n_rounds=n_rounds, round_s=0.5)
        own, theirs = (1e3 * seconds[name] / PERIOD for name in blocks)
        rows.append([width, batch_size, own, theirs, own / theirs])
    return markdown(["width", "batch", "this (ms)", "kfac-jax (ms)", "ratio"], rows)


def _start(workload: MLPWorkload, batch_size: int, seed: int) -> tuple[dict[str, jax.Array], Any]:
    batch = jax.device_put(next(workload.synthetic_queue(seed, batch_size)))
    return batch, workload.init_model_fn(jax.random.PRNGKey(seed))[0]


def _logits(workload: MLPWorkload, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    logits: Any = workload.model.apply(
        {"params": params}, workload._model_inputs(batch["inputs"]), train=True, dropout_rate=0.0
    )
    return logits


def _summed_loss(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    return -(jax.nn.log_softmax(logits) * batch["targets"]).sum()


class _EveryPeriod(KFAC):
    """K-FAC with kfac-jax's fixed period between refreshes, in place of a growing one."""

    def is_refresh_due(self, global_step: int, h: Any) -> bool:
        return global_step % PERIOD == 0


def _own_block(width: int, batch_size: int, seed: int) -> Callable[[], Any]:
    """`PERIOD` steps of kfac_expand through the contract. Without shared positions expand and reduce are the same."""
    workload, key, submission = MLPWorkload(width), jax.random.PRNGKey(seed), Submission(_EveryPeriod(Sharing.EXPAND))
    batch, params = _start(workload, batch_size, seed)
    point = {
        "learning_rate": _LEARNING_RATE,
        "damping": _DAMPING,
        "one_minus_beta1": 1 - _MOMENTUM,
        "refresh_share": (1 - _DECAY) * FACTOR_SHARE,  # for the same decay
        "rows_per_width": 0,
    }
    h = as_hyperparameters(point)

    carry = [submission.init_optimizer_state(workload, params, None, h, key), params, 0]

    def block() -> Any:
        for _ in range(PERIOD):
            state, params, _ = submission.update_params(
                workload=workload,
                current_param_container=carry[1],
                current_params_types=None,
                model_state=None,
                hyperparameters=h,
                batch=batch,
                loss_type=None,
                optimizer_state=carry[0],
                eval_results=[],
                global_step=carry[2],
                rng=key,
            )
            carry[:] = state, params, carry[2] + 1
        return carry[0][0], carry[1]

    return block


def _kfac_jax_block(width: int, batch_size: int, seed: int) -> Callable[[], Any]:
    workload = MLPWorkload(width)
    batch, params = _start(workload, batch_size, seed)
    optimizer = _optimizer(workload, "fisher_gradients")
    carry = [params, optimizer.init(params, jax.random.PRNGKey(seed), batch), 0]

    def block() -> Any:
        for _ in range(PERIOD):
            params, state, _ = _kfac_jax_step(optimizer, carry[0], carry[1], batch, carry[2], seed)
            carry[:] = params, state, carry[2] + 1
        return carry[0], carry[1]

    return block


def _optimizer(workload: MLPWorkload, estimation_mode: str) -> Any:
    import kfac_jax

    def loss(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        logits = _logits(workload, params, batch)
        kfac_jax.register_softmax_cross_entropy_loss(logits, batch["targets"].argmax(-1))
        return _summed_loss(logits, batch) / len(logits)

    return kfac_jax.Optimizer(
        value_and_grad_func=jax.value_and_grad(loss),
        l2_reg=0.0,
        estimation_mode=estimation_mode,
        curvature_ema=_DECAY,
        curvature_update_period=PERIOD,
        inverse_update_period=PERIOD,
        num_burnin_steps=0,
    )


def _kfac_jax_step(optimizer: Any, params: Any, state: Any, batch: Any, step: int, seed: int) -> tuple[Any, Any, Any]:
    return optimizer.step(
        params,
        state,
        jax.random.PRNGKey(seed),
        batch=batch,
        global_step_int=step,
        momentum=_MOMENTUM,
        damping=_DAMPING,
        learning_rate=_LEARNING_RATE,
    )


def _kfac_jax_factors(state: Any) -> list[np.ndarray]:
    """Every Kronecker factor in the state, in no particular order."""
    averages = [
        factor.value for block in state.estimator_state.blocks_states for factor in getattr(block, "factors", ())
    ]
    return [np.asarray(average) for average in averages]


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())
