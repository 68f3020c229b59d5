"""The tables of `scripts/bench_step.py`. Each is a Markdown file that also says where and how it was measured."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import (
    flavours,
    kfac_jax_mlp,
    memory,
    operations,
    orthogonalisation,
    scaling,
    workload_steps,
)
from benchmarks.timing import Deadline
from tuning import machine, records
from tuning.errors import UserError
from tuning.submission import load, submission_path
from workloads import registry

# Workload, batch size, micro-batches; the most informative first.
_GPU_SUITE = [("imagenet_vit", 256, 1), ("ogbg", 512, 1), ("cifar10_wrn", 512, 1), ("imagenet_vit", 1024, 4)]
# Then these tables, the first one at the batch sizes of Eschenhagen et al., 2023.
_GPU_TABLES, _PAPER_BATCH_SIZES = ("flavours", "orthogonalisation", "kfac_jax"), (128, 256, 512, 1024, 2048)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        workloads, submissions: of the table of whole steps. Ratios are to the first submission.
        batch_size: for the tables steps, operations and scaling; None for the first submission's.
        synthetic: whether the table of whole steps uses random batches, which need no data set.
        batch_sizes: of the table of expand against reduce.
        n_rounds: repetitions, whose median is reported.
        widths: of layers, for the tables orthogonalisation and kfac_jax.
        deadline: no new measurement begins after it.
    """

    workloads: Sequence[str]
    submissions: Sequence[str]
    batch_size: int | None
    synthetic: bool
    batch_sizes: Sequence[int]
    widths: Sequence[int]
    n_rounds: int
    deadline: Deadline
    seed: int
    data_dir: str
    out: Path


def write(name: str, options: Options) -> str:
    """Measures the table called `name`, writes it to `options.out`, and returns it.

    Raises:
        UserError: a library that it needs is not installed.
    """
    title, table = _TABLES[name]
    text = "\n".join(
        [*_head(title, options, has_rounds=name not in ("memory", "operations", "scaling")), "", table(options), ""]
    )
    records.write_text(options.out / f"{name}.md", text)
    return text


def write_gpu_suite(options: Options, log: Callable[[str], None]) -> None:
    """Times the steps of the full-size models at full batch size, and then `_GPU_TABLES`.

    The most informative models come first. The table of steps is written again after every model, and lists the models
    that were not run, as the time was over.
    """
    options, parts = dataclasses.replace(options, batch_sizes=_PAPER_BATCH_SIZES), list[str]()
    for workload, batch_size, micro_batches in _GPU_SUITE:
        if parts and options.deadline.has_passed:
            parts.append(options.deadline.not_run([f"{workload}, batch {batch_size}"]) + "\n")
        else:
            model_options = dataclasses.replace(options, workloads=[workload], batch_size=batch_size, synthetic=True)
            parts.append(_workload_steps(model_options, workload, micro_batches))
            log(parts[-1])
        text = "\n".join([*_head("Seconds of an update step", options), "", *_ABOUT_STEPS, "", *parts])
        records.write_text(options.out / "steps.md", text)
    for name in _GPU_TABLES:
        if options.deadline.has_passed:
            log(options.deadline.not_run([name]))
        elif name == "kfac_jax" and not kfac_jax_mlp.available():
            log("Not run, as kfac_jax is not installed: kfac_jax.")
        else:
            log(write(name, options))


def _head(title: str, options: Options, *, has_rounds: bool = True) -> list[str]:
    head = [f"# {title}", "", machine.provenance(machine.environment())]
    if has_rounds:
        rounds = f"Medians of at most {options.n_rounds} rounds in one process; each round times every row once"
        head.append(f"{rounds}; seed {options.seed}.")
    return head


_ABOUT_STEPS = [
    "Steps with and without a refresh are timed by themselves, on one batch that is used again and again. The mean",
    "over a run weights them by how often a run of the workload's own length takes each.",
]


def _steps(options: Options) -> str:
    parts = [_workload_steps(options, name, 1) for name in options.workloads]
    return "\n".join([*_ABOUT_STEPS, "", *parts]).rstrip()


def _workload_steps(options: Options, workload: str, micro_batches: int) -> str:
    submissions = [load(submission_path(name)) for name in options.submissions]
    batch_size = options.batch_size or submissions[0].training_batch_size(workload, registry.load(workload))
    costs = workload_steps.measure(
        workload,
        submissions,
        batch_size=batch_size,
        micro_batches=micro_batches,
        synthetic=options.synthetic,
        n_rounds=options.n_rounds,
        seed=options.seed,
        data_dir=options.data_dir,
        deadline=options.deadline,
    )
    parts = "" if micro_batches == 1 else f" in {micro_batches} micro-batches"
    data = "synthetic data" if options.synthetic else "its own data"
    lines = [f"## {workload}, batch {batch_size}{parts}, {data}", "", workload_steps.table(costs), ""]
    left_out = options.submissions[len(costs) :]
    if left_out:
        lines += [options.deadline.not_run(left_out), ""]
    return "\n".join(lines)


def _operations(options: Options) -> str:
    submissions = [load(submission_path(name)) for name in options.submissions]
    parts = [
        "Counted by the compiler, for this machine's device; library calls (Cholesky, eigh) count as nothing.",
        "Compilation is measured for one submission after another in one process, once.",
    ]
    for name in options.workloads:
        batch_size = options.batch_size or submissions[0].training_batch_size(name, registry.load(name))
        counts = operations.table(name, batch_size, submissions, options.seed)
        parts += ["", f"## {name}, batch {batch_size}, synthetic data", "", counts]
    return "\n".join(parts)


def _flavours(options: Options) -> str:
    steps = flavours.step_table(
        "cifar10_wrn", options.batch_sizes, n_rounds=options.n_rounds, seed=options.seed, deadline=options.deadline
    )
    parts = [
        "Wide ResNet 16-4 (GroupNorm), random CIFAR-10-shaped images. Programs: a step of SGD; a step of K-FAC;",
        "new factors, over all rows as in the paper; and a refresh, which makes new factors and inverts them. An",
        "update is a step and new factors. Memory is the compiler's count of arguments, results and temporaries.",
    ]
    if options.deadline.has_passed:
        return "\n".join([*parts, "", steps, "", options.deadline.not_run(["counted operations of each factor"])])
    title = f"Counted operations of each factor, batch {options.batch_sizes[0]}; layers of a like shape once:"
    operations = flavours.operations_table("cifar10_wrn", options.batch_sizes[0])
    return "\n".join([*parts, "", steps, "", title, "", operations])


def _orthogonalisation(options: Options) -> str:
    return orthogonalisation.table(options.widths, n_rounds=options.n_rounds, seed=options.seed)


def _kfac_jax(options: Options) -> str:
    if not kfac_jax_mlp.available():
        raise UserError("kfac_jax is not installed: see benchmarks/kfac_jax_mlp.py, or leave this table out")
    widths = [width for width in options.widths if width <= 1024]
    factors = kfac_jax_mlp.factors_table(widths[0], 64, options.seed)
    steps = kfac_jax_mlp.steps_table(widths, 64, n_rounds=options.n_rounds, seed=options.seed)
    about = f"A stack of three Dense layers; factors and inverses every {kfac_jax_mlp.PERIOD} steps in both."
    title = "Factors of the exact Fisher on one batch, difference relative to the largest entry:"
    return "\n".join([f"{about} kfac-jax {kfac_jax_mlp.version()}.", "", steps, "", title, "", factors])


def _memory(options: Options) -> str:
    cases = [("ogbg", 512, 1), ("imagenet_vit", 256, 1), ("imagenet_vit", 256, 2), ("imagenet_vit", 256, 4)]
    parts = [
        "The greater of a submission's two programs, the step and the refresh: arguments, results and temporaries.",
        "Compiled for a CPU, this is an estimate of what a GPU needs.",
        "A batch in micro-batches (hyperparameter `micro_batches`) is summed over them before it is divided.",
    ]
    return "\n".join([*parts, "", memory.table(cases)])


def _scaling(options: Options) -> str:
    parts = [
        "Counted in the programs that the compiler makes for simulated devices; nothing is run. The batch grows with",
        "the devices. Collectives are the bytes of their results on a device; a data-parallel step needs at",
        "least the gradient's. A refresh's work is Σ n³ over the matrices that a device factorises.",
    ]
    for name in options.workloads:
        first = load(submission_path(options.submissions[0]))
        batch_size = options.batch_size or first.training_batch_size(name, registry.load(name))
        counted = scaling.table(name, batch_size, options.submissions, options.seed)
        parts += ["", f"## {name}, {batch_size} examples on each device", "", counted]
    return "\n".join(parts)


_TABLES = {
    "steps": ("Seconds of an update step", _steps),
    "operations": ("Counted work of a training step", _operations),
    "flavours": ("K-FAC-expand against K-FAC-reduce", _flavours),
    "orthogonalisation": ("Ways to orthogonalise a refreshed basis", _orthogonalisation),
    "memory": ("Memory of a step", _memory),
    "scaling": ("Weak scaling", _scaling),
    "kfac_jax": ("Beside kfac-jax", _kfac_jax),
}
NAMES = tuple(_TABLES)
