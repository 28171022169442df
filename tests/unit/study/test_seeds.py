"""Seeds: a printed list, and the numbers that each task derives from them."""

from __future__ import annotations

import pytest

from lorascope.study.search import SearchSpec
from lorascope.study.seeds import PRINTED, Seeds
from lorascope.study.spec import Study

SMALL = {
    "name": "s",
    "question": "?",
    "models": ["smollm2-135m"],
    "tasks": ["mrpc", "rte"],
    "methods": ["full", "lora"],
}


def test_a_number_of_seeds_is_the_first_of_the_printed_list():
    study = Study.model_validate({**SMALL, "seeds": 10})
    assert [seeds.label for seeds in study.seeds] == [str(seed) for seed in PRINTED[:10]]
    assert [seeds.label for seeds in study.seeds[:5]] == ["42", "1337", "2024", "3407", "5489"]
    assert Study.model_validate(SMALL).seeds == study.seeds[:5], "the default"
    assert len(set(PRINTED)) == len(PRINTED)


def test_a_list_of_seeds_is_taken_as_it_stands():
    study = Study.model_validate({**SMALL, "seeds": [7, {"initialisation": 1, "order": 2, "dropout": 3}]})
    assert [seeds.label for seeds in study.seeds] == ["7", "1.2.3"]


@pytest.mark.parametrize("count", [0, 21])
def test_a_number_of_seeds_outside_the_list_is_refused(count):
    with pytest.raises(ValueError, match="a number of seeds is 1 to 20"):
        Study.model_validate({**SMALL, "seeds": count})


def test_tasks_derive_numbers_of_their_own_and_methods_share_them():
    seeds = Seeds.model_validate(42)
    first, second = seeds.derived("mrpc"), seeds.derived("rte")
    numbers = [*first.model_dump().values(), *second.model_dump().values()]
    assert len(set(numbers)) == 6 and all(0 <= number < 2**32 for number in numbers)
    assert first == seeds.derived("mrpc") != Seeds.model_validate(43).derived("mrpc")
    assert first.model_dump() == {"initialisation": 1049345178, "order": 2420119521, "dropout": 4201598702}


def test_one_source_of_chance_alone_changes_only_its_number():
    plain = Seeds.model_validate(42).derived("mrpc")
    other = Seeds.model_validate({"initialisation": 42, "order": 7, "dropout": 42}).derived("mrpc")
    assert (plain.initialisation, plain.dropout) == (other.initialisation, other.dropout)
    assert plain.order != other.order


def test_search_seeds_may_be_counted():
    assert SearchSpec.model_validate({"seeds": 3}).seeds == (0, 1, 2)
    assert SearchSpec.model_validate({"seeds": [5, 6]}).seeds == (5, 6)
    with pytest.raises(ValueError, match="a number of seeds is 1 to 20"):
        SearchSpec.model_validate({"seeds": 0})
