"""ogbg-molpcba from TFDS, packed once."""

from workloads.graphs.store import PackedGraphs


def load_molpcba(data_dir: str | None) -> PackedGraphs:
    raise FileNotFoundError(f"no ogbg_molpcba in {data_dir}")
