import typing

import jax
import numpy as np
import pytest

from tests.workloads.test_workload_contract import initialised
from workloads import registry

NAMES = [name for name in registry.names() if name.startswith(("ogbg", "imagenet_vit"))]

N_PARAMETERS = {
    "ogbg": 3_554_176,
    "ogbg_gelu": 3_554_176,
    "ogbg_silu": 3_554_176,
    "ogbg_model_size": 2_571_648,
    "imagenet_vit": 22_122_472,
    "imagenet_vit_glu": 50_452_456,
    "imagenet_vit_post_ln": 22_121_704,
    "imagenet_vit_map": 23_896_552,
}
TARGETS = {
    "ogbg": (0.28098, 0.268729),
    "ogbg_gelu": (0.27771, 0.262926),
    "ogbg_silu": (0.282178, 0.272144),
    "ogbg_model_size": (0.269446, 0.253051),
    "imagenet_vit": (0.77309, 0.6519),
    "imagenet_vit_glu": (0.75738, 0.6359),
    "imagenet_vit_post_ln": (0.75312, 0.6286),
    "imagenet_vit_map": (0.77113, 0.6523),
}


@pytest.mark.parametrize("name", NAMES)
def test_targets_and_sizes_are_algoperfs(name):
    workload = registry.load(name)
    assert (workload.validation_target_value, workload.test_target_value) == TARGETS[name]
    params = jax.eval_shape(lambda: workload.init_model_fn(jax.random.PRNGKey(0))[0])
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert n_parameters == N_PARAMETERS[name]
    if name.startswith("ogbg"):
        assert (workload.step_hint, workload.max_allowed_runtime_sec, workload.eval_period_time_sec) == (
            52_000,
            12_011,
            240,
        )
        sizes = (350_343, 43_793, 43_793, 43_793)
    else:
        assert (workload.step_hint, workload.max_allowed_runtime_sec, workload.eval_period_time_sec) == (
            167_999,
            69_768,
            420,
        )
        sizes = (1_281_167, 50_000, 50_000, 10_000)
    splits = workload.split_sizes
    assert (splits.train, splits.eval_train, splits.validation, splits.test) == sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_contract_initial_loss_output_shape_and_gradient_flow(name):
    workload, params = initialised(name)
    batch = next(workload.synthetic_queue(0, 64 if name.startswith("ogbg") else 8))
    mode = typing.get_type_hints(type(workload).model_fn)["mode"].TRAIN

    @jax.jit
    def loss_and_gradients(params):
        def loss(params):
            logits, _ = workload.model_fn(params, batch, None, mode, jax.random.PRNGKey(2), update_batch_norm=False)
            values = workload.loss_fn(batch["targets"], logits, batch["weights"])
            return values["summed"] / values["n_valid_examples"], logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), _ = loss_and_gradients(params)
    assert logits.shape == batch["targets"].shape
    if name.startswith("imagenet"):  # a zero-initialised head gives every class the same chance
        assert loss == pytest.approx(np.log(1000), rel=1e-5)
    # That head leaves every earlier gradient at zero, so move all parameters a little.
    moved = jax.tree.map(lambda x: x + 0.01 * jax.random.normal(jax.random.PRNGKey(1), x.shape), params)
    _, gradients = loss_and_gradients(moved)
    flat = {jax.tree_util.keystr(path): g for path, g in jax.tree_util.tree_leaves_with_path(gradients)}
    assert [path for path, g in flat.items() if not np.isfinite(g).all()] == []
    assert [path for path, g in flat.items() if not np.any(g)] == []
