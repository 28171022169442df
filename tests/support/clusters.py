"""A real Ray cluster of several nodes on this one machine: what tests of several machines run on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
SMALL = {"object_store_memory": 80 << 20}


@contextmanager
def ray_cluster(num_machines: int, *, num_cpus: int) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`. Its processes find this checkout's lorascope and the steps of the tests."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        paths = [str(TESTS / "support"), str(TESTS / "contract"), *(entry for entry in sys.path if entry)]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
        node = {"num_cpus": num_cpus, **SMALL}
        head = {**node, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(num_machines - 1):
                cluster.add_node(wait=False, **node)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()
