"""Kill -9 of worker, coordinator and both, 20 times at random points: the same command ends with the same results."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from kill import TARGETS, committed, kill_repeatedly, results

from lorascope.engine.step import Resources, Step
from lorascope.engine.store.directory import Store

CONTRACT = Path(__file__).parents[1] / "contract"
NUM_KILLS = 20
NUM_PARTS = 5

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers through /proc")


def layered_graph(*, gang_key: str | None = None) -> list[Step]:
    """18 steps in three layers: roots, steps that need two of them, and one that needs everything before it."""
    resources = Resources(gang_key=gang_key)

    def make(value: int, deps: dict[str, str]) -> Step:
        params = {"value": value, "num_parts": NUM_PARTS, "part_s": 0.06}
        return Step(kind="engine_checkpointed", version=1, params=params, deps=deps, resources=resources)

    roots = [make(value, {}) for value in range(1, 7)]
    middle = [make(10 + n, {"a": roots[n % 6].id, "b": roots[(n + 1) % 6].id}) for n in range(11)]
    return [*roots, *middle, make(99, {f"dep{n}": step.id for n, step in enumerate(middle)})]


def coordinator(
    tmp_path: Path, name: str, executor: str, *, gang_key: str | None = None
) -> tuple[list[str], Store, dict[str, str]]:
    graph = tmp_path / f"{name}.json"
    graph.write_text(json.dumps([step.to_json() for step in layered_graph(gang_key=gang_key)]))
    store = Store(tmp_path / name)
    path = os.pathsep.join([str(CONTRACT), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path, "ENGINE_TALLY": str(tmp_path / f"{name}.tally")}
    command = [sys.executable, str(CONTRACT / "engine_coordinator.py"), str(store.root), str(graph), executor]
    return command, store, environment


def run_undisturbed(tmp_path: Path) -> Store:
    command, store, environment = coordinator(tmp_path, "undisturbed", "inline")
    kills = kill_repeatedly(
        command,
        store=store,
        rng=random.Random(0),
        num_kills=0,
        delay_s=(0, 0),
        environment=environment,
        log=tmp_path / "undisturbed.log",
    )
    assert kills == []
    return store


@pytest.mark.parametrize("gang_key", [None, "all"], ids=["alone", "in gangs"])
def test_twenty_kills_at_random_points_change_no_result_and_lose_no_work(tmp_path, gang_key):
    undisturbed = run_undisturbed(tmp_path)
    command, store, environment = coordinator(tmp_path, "killed", "local", gang_key=gang_key)
    kills = kill_repeatedly(
        command,
        store=store,
        rng=random.Random(20260101),
        num_kills=NUM_KILLS,
        delay_s=(0.1, 0.5),
        environment=environment,
        log=tmp_path / "killed.log",
    )
    assert len(kills) == NUM_KILLS
    hits = Counter(kill.target for kill in kills if kill.hit and kill.num_committed < len(layered_graph()))
    assert set(hits) == set(TARGETS), f"no kill of some target met a study under way: {hits}"
    assert sum(hits.values()) >= NUM_KILLS // 2, f"too few kills met a study under way: {hits}"
    assert results(store) == results(undisturbed)
    assert len(committed(store)) == len(layered_graph())
    assert any(artifact.provenance["gang"] > 1 for artifact in store.artifacts()) == bool(gang_key)
    parts = Counter((tmp_path / "killed.tally").read_text().split())
    repeated = sum(parts.values()) - len(parts)
    assert len(parts) == len(layered_graph()) * NUM_PARTS
    assert repeated <= NUM_KILLS, f"{repeated} parts were computed again: checkpoints did not outlive the kills"
    assert list((store.root / "work").iterdir()) == []
    assert list((store.root / "staging").iterdir()) == []


def test_the_same_command_after_the_kills_is_all_cached(tmp_path):
    command, store, environment = coordinator(tmp_path, "killed", "local")
    kill_repeatedly(
        command,
        store=store,
        rng=random.Random(7),
        num_kills=2,
        delay_s=(0.3, 0.6),
        environment=environment,
        log=tmp_path / "killed.log",
    )
    before = committed(store)
    log = tmp_path / "again.log"
    kill_repeatedly(
        command, store=store, rng=random.Random(0), num_kills=0, delay_s=(0, 0), environment=environment, log=log
    )
    outcome = json.loads(log.read_text())
    assert outcome["done"] == []
    assert len(outcome["cached"]) == len(layered_graph())
    assert committed(store) == before
