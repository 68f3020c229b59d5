"""K-FAC-expand against K-FAC-reduce on one model: seconds, memory and operation counts of an update step.

Source: the timing of a Wide ResNet in Eschenhagen et al., 2023.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from benchmarks.programs import PROGRAMS, milliseconds, programs, work
from benchmarks.timing import Deadline, markdown
from submissions.algoperf.problem import Problem
from submissions.kfac.algoperf import KFAC
from submissions.kfac.capture import capture, families, trace
from submissions.kfac.convolution import patches
from submissions.kfac.factors import Use, input_factor, output_factor
from submissions.kfac.layers import Layer, find_layers
from submissions.kfac.sharing import Rows, Sharing
from workloads import registry

_TIMES = [f"{name} (ms)" for name in PROGRAMS]
_COLUMNS = ["batch", "flavour", *_TIMES, "expand / reduce, update", "memory, new factors (GiB)"]


def step_table(workload_name: str, batch_sizes: Sequence[int], *, n_rounds: int, seed: int, deadline: Deadline) -> str:
    """A row for each batch size and flavour. The ratio is expand's time over this row's, of a step and its new factors.

    Of the batch sizes, the first one is always measured, and no other one is begun after the deadline.
    """
    rows: list[list[Any]] = []
    for n_done, batch_size in enumerate(batch_sizes):
        if rows and deadline.has_passed:
            return f"{markdown(_COLUMNS, rows)}\n\n{deadline.not_run(batch_sizes[n_done:])}"
        workload = registry.load(workload_name)
        batch = next(workload.synthetic_queue(seed, batch_size))
        costs = {}
        for sharing in Sharing:
            compiled = programs(workload, KFAC(sharing), batch, seed)
            costs[sharing] = milliseconds(compiled, n_rounds=n_rounds), compiled["new factors"].bytes / 2**30
        base = _update(costs[Sharing.EXPAND][0])
        for sharing, (times, memory) in costs.items():
            cells = [times[name] for name in PROGRAMS]
            rows.append([batch_size, sharing.value, *cells, base / _update(times), memory])
    return markdown(_COLUMNS, rows)


def _update(milliseconds_of: Mapping[str, float]) -> float:
    return milliseconds_of["step"] + milliseconds_of["new factors"]


def operations_table(workload_name: str, batch_size: int) -> str:
    """A row for each factor (A or B) of a layer with shared positions; only the first of those with equal R and d.

    A row has the operations of expand and of reduce, as the compiler counts them, their ratio (saving), and the ratio
    that a formula predicts (ideal).

    With R positions of an example and width d, expand multiplies R d² numbers for an example; reduce adds R d numbers
    and multiplies d². Ideally reduce needs R d / (R + d) times fewer operations.
    """
    rows, listed = [], set()
    for layer, side, use in sides(workload_name, batch_size):
        positions, width = positions_and_width(use)
        if positions == 1 or (positions, width) in listed:
            continue
        listed.add((positions, width))
        counts = {sharing: factor_flops(side, use, layer, sharing) for sharing in Sharing}
        ideal = positions * width / (positions + width)
        saving = counts[Sharing.EXPAND] / counts[Sharing.REDUCE]
        giga = [counts[sharing] / 1e9 for sharing in Sharing]
        rows.append([layer.name, side, positions, width, *giga, saving, ideal, saving / ideal])
    columns = ["layer", "factor", "R", "d", "expand (GFLOP)", "reduce (GFLOP)", "saving", "ideal", "of ideal"]
    return markdown(columns, rows)


def factor_flops(side: str, use: Use, layer: Layer, sharing: Sharing) -> float:
    """Floating-point operations of the compiled factor "A" or "B" of one use, whose `values` may be only a shape."""

    def factor(values: jax.Array) -> jax.Array:
        uses = [use._replace(values=values)]
        if side == "A":
            return input_factor(uses, sharing, layer.has_bias)
        return output_factor(uses, sharing, jax.numpy.float32(len(values)))

    return work(jax.jit(factor).lower(use.values).compile())["flops"]


def sides(workload_name: str, batch_size: int) -> Iterator[tuple[Layer, str, Use]]:
    """Every captured layer's "A" and "B" side and its first use, whose `values` is only a shape."""
    workload = registry.load(workload_name)
    batch = next(workload.synthetic_queue(0, batch_size))
    params = jax.eval_shape(lambda: workload.init_model_fn(jax.random.PRNGKey(0))[0])
    layers = find_layers(params)
    convolutions = {}

    def values(params: Any) -> tuple[dict, dict]:
        problem = Problem(workload, batch, None, 0.0, None, jax.random.PRNGKey(0))
        traced = trace(problem.forward, params)
        by_kernel, _ = families(traced.products, params, layers)
        convolutions.update({kernel: family.uses[0].raw_convolution for kernel, family in by_kernel.items()})
        captured = capture(traced, params, by_kernel)
        return captured.inputs, captured.pullback(captured.outputs)[1]

    inputs, gradients = jax.eval_shape(values, params)
    for layer in layers:
        kernel = layer.kernel_path
        if kernel in inputs:
            yield layer, "A", Use(inputs[kernel][0], Rows(batch_size), convolutions[kernel])
            yield layer, "B", Use(gradients[kernel][0], Rows(batch_size))


def positions_and_width(use: Use) -> tuple[int, int]:
    """R and d of a layer's side; for a convolution, those of its patches."""
    shape, convolution = use.values.shape, use.convolution
    if convolution is not None:
        shape = jax.eval_shape(lambda x: patches(x, convolution), use.values).shape
    return math.prod(shape[1:-1]), shape[-1]
