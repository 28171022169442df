"""Which places the machines of a cluster get: none twice, none taken from whoever is at work."""

from __future__ import annotations

from collections import Counter

from lorascope.engine.ray.cluster import Machine
from lorascope.engine.ray.places import Place, lay_out
from lorascope.engine.step import Step

BIG, SMALL = Machine("1", "big", num_cpus=8, num_gpus=2), Machine("2", "small", num_cpus=2, num_gpus=0)
BOTH = {machine.node_id: machine for machine in (BIG, SMALL)}


def names(places: list[Place]) -> list[str]:
    return sorted(place.name for place in places)


def test_each_gpu_gets_a_place_and_its_machine_one_that_is_all_of_it() -> None:
    places = lay_out([], BOTH, kind="cuda", devices=None)
    assert names(places) == ["big-all-0", "big-cuda-0", "big-cuda-1"]
    assert {(place.name, place.whole, place.device) for place in places if place.whole} == {
        ("big-all-0", True, "cuda:0")
    }


def test_without_any_gpu_each_machine_gets_a_place() -> None:
    assert names(lay_out([], BOTH, kind="cpu", devices=None)) == [
        "big-all-0",
        "big-cpu-0",
        "small-all-0",
        "small-cpu-0",
    ]


def test_so_many_devices_are_spread_over_the_machines_as_far_as_they_go() -> None:
    places = lay_out([], BOTH, kind="cuda", devices=["cpu"] * 5)
    assert Counter(place.machine.name for place in places if not place.whole) == {"big": 3, "small": 2}
    assert len([p for p in lay_out([], BOTH, kind="cuda", devices=["cuda"] * 5) if not p.whole]) == 2


def test_laying_out_again_keeps_every_place_and_adds_none() -> None:
    places = lay_out([], BOTH, kind="cuda", devices=None)
    again = lay_out(places, BOTH, kind="cuda", devices=None)
    assert len(again) == len(places) and all(now is was for now, was in zip(again, places, strict=True))


def test_places_of_a_lost_machine_go_but_for_those_at_work() -> None:
    places = lay_out([], BOTH, kind="cuda", devices=None)
    busy = next(place for place in places if not place.whole)
    busy.steps = {"train-1": Step("train", 1, {})}
    assert lay_out(places, {SMALL.node_id: SMALL}, kind="cuda", devices=None) == [busy]
