"""`ogbg`: a graph network predicts 128 bioassays of molecules (ogbg-molpcba); and AlgoPerf's three variants of it.

Data: TFDS `ogbg_molpcba` 0.1.3. Source of model, sizes, budgets and targets: the AlgoPerf benchmark, v0.6.
"""

from flax import linen as nn

from workloads import budgets
from workloads.graphs.model import GraphNetworkModel
from workloads.graphs.molpcba import DATASET, PACKED, load_molpcba
from workloads.graphs.store import PackedGraphs
from workloads.graphs.workload import GraphWorkload
from workloads.spec import SplitSizes, Target
from workloads.tfds_data import PreparedData

_N_TASKS = 128


class OgbgWorkload(GraphWorkload):
    model = GraphNetworkModel(num_outputs=_N_TASKS)
    sub_batches = 8
    smoothing_classes = _N_TASKS  # as in AlgoPerf, which treats the tasks as classes
    validation_target = Target("mean_average_precision", 0.28098)
    test_target = Target("mean_average_precision", 0.268729)
    budget = budgets.BUDGETS[budgets.V100X8]["ogbg"]
    eval_batch_size = 4096  # meant for one device of 16 GB: AlgoPerf's 32,768, on eight devices, is as many per device
    split_sizes = SplitSizes(train=350_343, eval_train=43_793, validation=43_793, test=43_793)
    prepared_data = (
        PreparedData(
            DATASET,
            {"train": 350_343, "validation": 43_793, "test": 43_793},
            ("pcba.zip",),
            finish=load_molpcba,
            packed=PACKED,
        ),
    )

    def _load(self, data_dir: str | None) -> PackedGraphs:
        return load_molpcba(data_dir)


class OgbgGeluWorkload(OgbgWorkload):
    model = GraphNetworkModel(num_outputs=_N_TASKS, activation=nn.gelu)
    validation_target = Target("mean_average_precision", 0.27771)
    test_target = Target("mean_average_precision", 0.262926)


class OgbgSiluWorkload(OgbgWorkload):
    model = GraphNetworkModel(num_outputs=_N_TASKS, activation=nn.silu)
    validation_target = Target("mean_average_precision", 0.282178)
    test_target = Target("mean_average_precision", 0.272144)


class OgbgModelSizeWorkload(OgbgWorkload):
    model = GraphNetworkModel(num_outputs=_N_TASKS, latent_dim=128, hidden_dims=(256, 256), num_message_passing_steps=3)
    validation_target = Target("mean_average_precision", 0.269446)
    test_target = Target("mean_average_precision", 0.253051)
