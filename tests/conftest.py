import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests import molecules

# The order in which `make test-slow` hands out files, one at a time to each of two workers ("*": the others). Those
# that take minutes come first, so that both workers end together. Those that mostly wait, such as test_slurm.py and
# test_sweep_faults.py, alternate with those that compute.
_ORDER = """
docker/test_build.py tuning/test_sweep.py tuning/test_several_devices.py tuning/test_slurm.py
harness/test_environments.py tuning/test_sweep_faults.py test_full_size.py test_end_to_end.py
tuning/test_trial_in_processes.py workloads/test_full_size_models.py harness/test_conformance.py
tuning/test_trial_processes.py tuning/test_target.py test_examples.py tuning/test_stopped_trials.py
tuning/test_resume.py tuning/test_memory.py * test_wheel.py tuning/report/test_browser.py docker/test_dockerfile.py
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(_ORDER)}
    items.sort(key=lambda item: places.get(item.path, _ORDER.index("*")))


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.getbasetemp()
    molecules.FOLDER = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def own_compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs compiled by earlier runs are not used, and the user's cache stays as it is."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"))
        yield


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Of programs that run a few times only."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
