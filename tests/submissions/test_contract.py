"""What every submission must do, whatever its algorithm; a new folder under submissions/ is tested as it is found."""

import json
import math
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import optax
import pytest

import submissions
from tests.submissions.fake_workload import BATCH_SIZE, DROPOUT_RATE, N_INPUTS, FakeWorkload, Mode, Trial, batches
from tuning.clock import CompileTimer
from tuning.submission import load

FOLDER = Path(submissions.__path__[0])
NAMES = sorted(file.parent.name for file in FOLDER.glob("*/submission.py"))
# Not in the oldest optax that the other submissions run on.
NEEDS = {"muon": "MuonDimensionNumbers", "schedule_free_adamw": "schedule_free_adamw"}
FIRST_ORDER = ("nesterov", "nadamw", "muon", "schedule_free_adamw")
BATCHES = batches()
# Past step 0, whose learning rate is zero, and early enough for curvature to be used without a past.
A_STEP = 1

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", params=NAMES)
def submission(request) -> Any:
    needed = NEEDS.get(request.param)
    if needed and not hasattr(optax.contrib, needed):
        pytest.skip(f"this optax has no {needed}")
    return load(FOLDER / request.param)


@pytest.fixture(scope="module")
def workload(quick_compilation) -> FakeWorkload:
    """One for all tests, which so share compilations."""
    return FakeWorkload()


def point(**values: Any) -> tuple:
    return namedtuple("Hyperparameters", values)(**values)


def place(choices: dict, u: float) -> Any:
    """A search space's entry -> its value at u in [0, 1); ½ is the middle, the geometric mean on a log scale."""
    if "feasible_points" in choices:
        return choices["feasible_points"][int(u * len(choices["feasible_points"]))]
    low, high = choices["min"], choices["max"]
    return low * (high / low) ** u if choices["scaling"] == "log" else low + u * (high - low)


def searched(submission: Any, u: float = 0.5) -> dict[str, Any]:
    space = json.loads(submission.search_space_file.read_text())
    if isinstance(space, list):
        return space[int(u * len(space))]
    return {name: place(choices, u) for name, choices in space.items()}


def with_options(submission: Any, **changes: float) -> tuple:
    """The search space's middle with every optional number of the contract, so that all these share a compilation."""
    options = {"label_smoothing": 0.0, "grad_clip": 1e6, "dropout_rate": 0.0, "weight_decay": 0.0}
    return point(**(searched(submission) | options | changes))


def assert_same(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def differ(left: Any, right: Any) -> bool:
    return any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def distance(left: Any, right: Any) -> float:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return math.sqrt(sum(np.square(a - b).sum() for a, b in pairs))


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def logged_loss(submission: Any, workload: FakeWorkload, options: tuple, key: jax.Array) -> float:
    trial = Trial(submission, workload, options)
    trial.step(0, BATCHES[0], key)
    return trial.recorder.logged[0]["loss"]


def one_step(submission: Any, workload: FakeWorkload, options: tuple) -> tuple:
    trial = Trial(submission, workload, options)
    trial.step(A_STEP, BATCHES[0])
    return trial.trees


def test_the_state_is_complete_at_the_start(submission, workload):
    trial = Trial(submission, workload, point(**searched(submission)))
    state, steps = trial.optimizer_state
    assert callable(steps) and jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    at_start = shapes((state, trial.params, trial.model_state))
    for first, end in ((0, 1), (1, 12)):
        trial.run(first, end, BATCHES)
        state, still = trial.optimizer_state
        assert still is steps and shapes((state, trial.params, trial.model_state)) == at_start
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trial.optimizer_state[0]))


def test_nothing_compiles_twice(submission, workload):
    middle = searched(submission)
    quarter = searched(submission, 0.25)
    quarter = {name: quarter[name] if isinstance(value, float) else value for name, value in middle.items()}
    assert quarter != middle
    first = Trial(submission, workload, point(**middle)).run(0, 25, BATCHES)
    with CompileTimer() as timer:
        first.run(25, 60, BATCHES)
        assert timer.counts.n_compiles == 0
        second = Trial(submission, workload, point(**quarter), seed=1).run(0, 25, BATCHES)
        assert second.optimizer_state[1] is first.optimizer_state[1]
    assert timer.counts.n_compiles == 0


def test_bytes_restore_the_state(submission, workload):
    def through_bytes(trees, template):
        return flax.serialization.from_bytes(template, flax.serialization.to_bytes(trees))

    check_restoration(submission, workload, through_bytes)


def test_an_orbax_checkpoint_restores_the_state(submission, workload, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")

    def through_checkpoint(trees, template):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "checkpoint", trees)
            checkpointer.wait_until_finished()
            return checkpointer.restore(tmp_path / "checkpoint", template)

    check_restoration(submission, workload, through_checkpoint)


def check_restoration(submission: Any, workload: FakeWorkload, write_and_read: Any) -> None:
    """`write_and_read(trees, template)`; the trial it is read into starts from another seed."""
    middle = point(**searched(submission))
    trial, other = Trial(submission, workload, middle).run(0, 12, BATCHES), Trial(submission, workload, middle, seed=1)
    saved = trial.trees
    restored = write_and_read(saved, other.trees)
    assert_same(restored, saved)
    other.put(restored)
    for each in (trial, other):
        for step in (12, 13, 14, 15):
            each.step(step, BATCHES[step % 4], jax.random.PRNGKey(step))
    assert_same(other.trees, trial.trees)
    assert differ(other.trees[1], saved[1])


def test_dropout_is_active(submission, workload):
    keys = jax.random.PRNGKey(0), jax.random.PRNGKey(1)
    for rate, active in ((0.5, True), (0.0, False)):
        losses = [logged_loss(submission, workload, with_options(submission, dropout_rate=rate), key) for key in keys]
        assert (losses[0] != losses[1]) == active


def test_without_a_dropout_rate_the_workloads_own_is_taken(submission, workload):
    middle = point(**searched(submission))
    losses = [logged_loss(submission, workload, middle, jax.random.PRNGKey(seed)) for seed in (0, 1)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_smoothed_and_without_padding(submission, workload, smoothing):
    options = with_options(submission, label_smoothing=smoothing)
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(0))
    batch = BATCHES[0]
    logits, _ = workload.model_fn(params, batch, model_state, Mode.TRAIN, jax.random.PRNGKey(0), True, 0.0)
    z = np.asarray(logits, np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    labels = (1 - smoothing) * batch["targets"] + smoothing / z.shape[1]
    expected = -(labels * log_p).sum(1)[: BATCH_SIZE - 1].mean()
    loss = logged_loss(submission, workload, options, jax.random.PRNGKey(0))
    assert math.isclose(loss, expected, rel_tol=1e-5)


def test_label_smoothing_reaches_the_update(submission, workload):
    plain, smoothed = (one_step(submission, workload, with_options(submission, label_smoothing=s))[1] for s in (0, 0.3))
    assert differ(plain, smoothed)


def test_the_gradient_is_clipped(submission, workload):
    before, _ = jax.tree.map(np.array, workload.init_model_fn(jax.random.PRNGKey(0)))
    # A gradient clipped to nothing moves nothing, in any algorithm without weight decay.
    clipped = one_step(submission, workload, with_options(submission, grad_clip=0.0))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), clipped, before)
    unbounded = one_step(submission, workload, with_options(submission, dropout_rate=DROPOUT_RATE))[1]
    assert differ(unbounded, before)
    # A bound above the gradient's norm does nothing: another such bound gives the same to the last bit.
    wider = one_step(submission, workload, with_options(submission, dropout_rate=DROPOUT_RATE, grad_clip=1e9))[1]
    assert_same(unbounded, wider)
    # Without a bound it is another program. Adam's first step is nearly the gradient's sign, so that rounding shows
    # where the gradient is small; most in SOAP, whose first basis is of one gradient and otherwise of rounding.
    without = one_step(submission, workload, point(**(searched(submission) | {"weight_decay": 0.0})))[1]
    assert distance(unbounded, without) < 0.05 * distance(without, before)


def test_the_model_state_is_updated(submission, workload):
    trial = Trial(submission, workload, with_options(submission))
    params, model_state = trial.trees[1:]
    trial.step(A_STEP, BATCHES[0])
    hidden = np.tanh(BATCHES[0]["inputs"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    expected = 0.1 * hidden[: BATCH_SIZE - 1].mean(0)
    (before,), (after,) = (list(tree["batch_stats"].values()) for tree in (model_state, trial.trees[2]))
    assert not before["mean"].any()
    np.testing.assert_allclose(after["mean"], expected, atol=1e-6)


def test_padding_changes_nothing(submission, workload):
    rng = np.random.default_rng(1)
    others = []
    for batch in BATCHES:
        inputs, targets = batch["inputs"].copy(), batch["targets"].copy()
        inputs[-1], targets[-1] = 100 * rng.normal(size=N_INPUTS), np.roll(targets[-1], 1)
        others.append({"inputs": inputs, "targets": targets, "weights": batch["weights"]})
    middle = point(**searched(submission))
    trials = [Trial(submission, workload, middle).run(0, 12, given) for given in (BATCHES, others)]
    assert_same(trials[0].trees, trials[1].trees)


def test_a_batch_of_nan_leaves_the_parameters_finite(submission, workload):
    """And what could not be used is counted, and the count logged."""
    if submission.name in FIRST_ORDER:
        pytest.skip("a first-order algorithm, which trusts its gradients")
    trial = Trial(submission, workload, point(**searched(submission))).run(0, 3, BATCHES)
    prepare(submission, workload, trial, point(**searched(submission)))
    before = trial.recorder.logged[2]
    lost = BATCHES[0] | {"inputs": np.full_like(BATCHES[0]["inputs"], np.nan)}
    for step in (3, 4, 10, 50):
        trial.step(step, lost)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trial.trees))
    after = trial.recorder.logged[50]
    assert before["n_curvature_faults"] == 0 and after["n_curvature_faults"] >= 4
    assert after["n_curvature_fallbacks"] - before["n_curvature_fallbacks"] >= after["n_curvature_faults"]


def test_the_same_seed_gives_the_same_parameters(submission, workload):
    middle = point(**searched(submission))
    runs = [Trial(submission, workload, middle, seed).run(0, 12, BATCHES).trees for seed in (5, 5, 6)]
    assert_same(runs[0], runs[1])
    assert differ(runs[0][1], runs[2][1])


def test_sixty_steps_bring_the_loss_down(submission, workload):
    """At the middle of the search space but with a schedule over the whole budget, to less than half."""
    whole = {name: np.concatenate([batch[name] for batch in BATCHES]) for name in BATCHES[0]}

    @jax.jit
    def mean_loss(params, model_state) -> jax.Array:
        logits, _ = workload.model_fn(params, whole, model_state, Mode.TRAIN, jax.random.PRNGKey(0), True, 0.0)
        values = workload.loss_fn(whole["targets"], logits, whole["weights"])
        return values["summed"] / values["n_valid_examples"]

    options = searched(submission) | {"schedule_fraction": 1.0}
    trial = Trial(submission, workload, point(**options))
    before = mean_loss(trial.params, trial.model_state)
    trial.run(0, 60, BATCHES)
    after = mean_loss(trial.params, trial.model_state)
    assert after < 0.5 * before


def test_evaluation_and_data_selection_do_not_change_training(submission, workload):
    middle = point(**searched(submission))
    trial = Trial(submission, workload, middle).run(0, 2, BATCHES)
    queue = iter(BATCHES)
    key = jax.random.PRNGKey(0)
    rest = trial.optimizer_state, trial.params, trial.model_state, middle, 2, key
    assert submission.data_selection(workload, queue, *rest) is BATCHES[0] and next(queue) is BATCHES[1]
    for _ in range(2):
        prepared = prepare(submission, workload, trial, middle)
        assert prepared[0][1] is trial.optimizer_state[1]
        arrays = prepared[0][0], *prepared[1:]
        assert jax.tree.all(jax.tree.map(lambda leaf: leaf.is_ready(), arrays))
        trial.put(arrays)
    undisturbed = Trial(submission, workload, middle).run(0, 2, BATCHES)
    for each in (trial, undisturbed):
        each.run(2, 4, BATCHES)
    assert_same(trial.trees, undisturbed.trees)


def prepare(submission: Any, workload: FakeWorkload, trial: Trial, middle: tuple) -> tuple:
    return submission.prepare_for_eval(
        workload=workload,
        current_param_container=trial.params,
        current_params_types=None,
        model_state=trial.model_state,
        hyperparameters=middle,
        loss_type=None,
        optimizer_state=trial.optimizer_state,
        eval_results=[],
        global_step=2,
        rng=jax.random.PRNGKey(0),
    )


def test_batch_sizes(submission):
    names = ("criteo1tb", "fastmri", "finewebedu_lm", "imagenet_resnet", "imagenet_vit", "librispeech_conformer")
    names += ("librispeech_deepspeech", "ogbg", "wmt")
    sizes = {name: submission.get_batch_size(name) for name in names}
    assert all(type(size) is int and size > 0 for size in sizes.values())
    assert submission.get_batch_size("ogbg_gelu") == sizes["ogbg"] == 512
    assert submission.get_batch_size("librispeech_conformer_attention_temperature") == sizes["librispeech_conformer"]
    # A variant with a size of its own, and a name that begins as another workload's does.
    assert submission.get_batch_size("imagenet_resnet_silu") == 512 < sizes["imagenet_resnet"]
    assert submission.get_batch_size("mnist") == 16
    with pytest.raises(ValueError, match="no batch size for workload mnist_vit"):
        submission.get_batch_size("mnist_vit")
    with pytest.raises(ValueError, match="no_such_workload.*known are cifar.*wmt"):
        submission.get_batch_size("no_such_workload")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 0.1}, "learning_rat;.*known are .*learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0, outside"),
        ({"dropout_rate": 1.5}, "dropout_rate is 1.5, outside"),
    ],
)
def test_a_wrong_hyperparameter_is_named(submission, workload, changes, message):
    with pytest.raises(ValueError, match=message):
        Trial(submission, workload, point(**(searched(submission) | changes)))


def test_the_ends_of_the_ranges_give_finite_parameters(submission, workload):
    """Those of the moving averages' decays, where a correction for their start may divide by zero."""
    ends = [{"one_minus_beta1": end} for end in (0.0, 1e-6, 1 - 1e-6, 1.0)]
    ends += [{"beta2": end} for end in (0.0, 1 - 1e-6, 1.0)]
    n_tried = 0
    for changes in ends:
        try:
            params = one_step(submission, workload, with_options(submission, **changes))[1]
        except ValueError as error:
            assert re.search("outside|unknown hyperparameter", str(error))
            continue
        n_tried += 1
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)), changes
    assert n_tried >= 2


def test_micro_batches_of_graphs_are_refused_at_the_start(submission, workload, monkeypatch):
    monkeypatch.setattr(workload, "pads_batches", True, raising=False)
    with pytest.raises(ValueError, match="micro_batches is 2, but batches of graphs cannot be divided"):
        Trial(submission, workload, with_options(submission, micro_batches=2))


def test_a_missing_hyperparameter_is_named(submission, workload):
    values = {name: value for name, value in searched(submission).items() if name != "learning_rate"}
    with pytest.raises(ValueError, match="missing.*learning_rate"):
        Trial(submission, workload, point(**values))
