"""A real Ray cluster of several nodes on this one machine: what tests of several machines run on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent


@contextmanager
def ray_cluster(
    num_machines: int, *, num_cpus: int, labels: Mapping[int, Mapping[str, str]] | None = None
) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`. Its processes find this checkout's lorascope and the steps of the tests.

    labels: of the node with that number; 0 is the head.
    """
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        paths = [str(TESTS), str(TESTS / "contract"), *(entry for entry in sys.path if entry)]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
        node = {"num_cpus": num_cpus, "object_store_memory": 80 << 20}
        head = {**node, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for number in range(1, num_machines):
                cluster.add_node(wait=False, **node, labels=dict((labels or {}).get(number, {})))
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()
