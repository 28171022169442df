"""How many runs train together on a GPU, with the device's answers faked: no GPU is needed to count."""

from __future__ import annotations

import pytest
import torch

from lorascope.engine.provenance import WORKERS_ON_DEVICE
from lorascope.engine.workers import worker
from lorascope.training import sizing
from lorascope.training.gang_decision import GangDecision

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "workers", "size"),
    [
        (80, 1, 8),  # 80% of 80 GiB, 8 GiB a run
        (40, 1, 4),
        (80, 4, 2),  # a quarter of the device, whatever is free now
        (10, 4, 1),
        (4, 1, 1),  # one run is always tried
    ],
)
def test_a_gang_takes_a_workers_part_of_the_memory_that_is_free(
    free: int, workers: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKERS_ON_DEVICE, str(workers))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    alone = sizing.UpdateCost(seconds=0.1, peak_bytes=9 * GIB)
    monkeypatch.setattr(sizing, "probe", lambda gang, device: alone)
    members = [object()] * 10
    found = sizing.gang_size(
        members,  # type: ignore[arg-type]
        device="cuda:0",
        limit=None,
        build=lambda members: None,  # type: ignore[arg-type,return-value]
        decision=GangDecision(()),
    )
    assert found == (size, alone)


@pytest.mark.parametrize(("device", "workers", "times"), [("cuda:0", 2, 1), ("cuda:0", 1, 0), ("cpu", 2, 0)])
def test_a_worker_gives_back_what_torch_keeps_of_a_shared_gpu(
    device: str, workers: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKERS_ON_DEVICE, str(workers))
    given_back: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(None))
    worker._give_back_memory(device)
    assert len(given_back) == times
