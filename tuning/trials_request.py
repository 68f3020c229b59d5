"""Which trials to run: the request that `experiment` (one process) and `sweep` (many workers) have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import disk, search_space, submission
from tuning.description import MatmulPrecision, TrialDescription, describe
from tuning.errors import UserError, setup_phase
from tuning.monitoring import Monitoring
from tuning.ruleset import TuningRuleset
from tuning.submission import Submission
from workloads import registry
from workloads.spec import Workload

SWEEP_DATABASE, SWEEP_ID = "study.db", "study.id"  # files of a sweep in the experiment's folder


@dataclass(frozen=True)
class TrialsRequest:
    """Trials of one submission on one workload, under the names of AlgoPerf's flags."""

    workload: str
    submission_path: str
    experiment_dir: str
    experiment_name: str
    tuning_ruleset: str = TuningRuleset.EXTERNAL
    tuning_search_space: str | None = None  # a file; None is the submission's own
    num_tuning_trials: int = 1  # at most the points of a search space that is a list
    rng_seed: int = 0
    max_global_steps: int | None = None
    hardware_profile: str | None = None  # sets the budget of an official workload; None is the workload's own
    batch_size: int | None = None  # None is the submission's own
    eval_batch_size: int | None = None  # None is the submission's or the workload's own
    matmul_precision: str = MatmulPrecision.DEFAULT
    stop_at_target: bool = True  # False trains to the end of the budget
    data_dir: str = "~/data"
    checkpoints_to_keep: int = 2  # of each trial
    checkpoint_period_s: int = 0  # between two evaluations; 0 for never
    tensorboard: bool = False
    wandb_project: str | None = None  # of Weights & Biases

    @property
    def experiment_folder(self) -> Path:
        """The folder of this experiment, which is directly in the folder of all experiments.

        Raises:
            UserError: the experiment's name is not the name of a single folder.
        """
        name = self.experiment_name.rstrip("/")
        if not name or "/" in name or name in (".", "..") or not name.isprintable():
            raise UserError(f"--experiment_name={self.experiment_name!r} is not a folder name; give one without '/'")
        return disk.expanded(self.experiment_dir, "experiment_dir") / name

    @property
    def monitoring(self) -> Monitoring:
        """The displays of the running trials."""
        return Monitoring(tensorboard=self.tensorboard, wandb_project=self.wandb_project)

    def load(self) -> tuple[Workload, Submission]:
        """The workload and the submission, with the batch sizes that were asked for. May raise UserError."""
        with setup_phase():
            workload = registry.load(self.workload, self.hardware_profile)
        loaded = submission.load(self.submission_path)
        return workload, loaded.with_batch_sizes(self.batch_size, self.eval_batch_size)

    def describe_trials(
        self,
        workload: Workload,
        submission: Submission,
        seed: int,
        sampling: search_space.Sampling = search_space.Sampling.RANDOM,
        pruning: str = "none",
    ) -> tuple[dict | list | None, list[TrialDescription]]:
        """The search space of one study, None under the self-tuning ruleset, and its trials.

        Args:
            seed: of the points, and of all trials.
            pruning: the rule that may end trials early.

        Raises:
            UserError: the search space, the seed or the batch size cannot be used; or the ruleset is self-tuning, and
                a search space or several points are given.
        """
        space: dict | list | None = None
        points: list[dict[str, Any]] = [{}]
        if self.tuning_ruleset == TuningRuleset.SELF:
            if self.tuning_search_space is not None:
                raise UserError("--tuning_search_space is for --tuning_ruleset=external; leave out one of them")
            if self.num_tuning_trials != 1:
                cure = "give --num_tuning_trials=1; other seeds, or a sweep's --num_studies, repeat it"
                raise UserError(f"under --tuning_ruleset=self a study is one trial; {cure}")
        else:
            space = search_space.read(self.tuning_search_space or submission.search_space_file)
            points = search_space.points(space, self.num_tuning_trials, seed, sampling)
        return space, [
            describe(
                self.workload,
                workload,
                submission,
                point,
                rng_seed=seed,
                trial_index=trial_index,
                data_dir=self.data_dir,
                max_global_steps=self.max_global_steps,
                matmul_precision=self.matmul_precision,
                stop_at_target=self.stop_at_target,
                pruning=pruning,
            )
            for trial_index, point in enumerate(points, start=1)
        ]
