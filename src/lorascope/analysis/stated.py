"""The study as facts state it: the question without places on a machine, and back."""

from __future__ import annotations

from lorascope.engine.step import JSON
from lorascope.measures.measure import known_measures
from lorascope.study.spec import Study
from lorascope.study.tasks import without_paths


def stated_study(study: Study) -> JSON:
    """The study as literals, without the places of files, the sizes of gangs and the trackers."""
    unset = {"search"} if study.search is None else set()
    stated = study.model_dump(mode="json", exclude={"train": {"gang"}, "track": True, **dict.fromkeys(unset, True)})
    for method in stated["methods"]:
        given = method.pop("hyperparameters")
        if given is not None:
            method["hyperparameters"] = "file"  # the place of the file changes nothing that is computed
    stated["tasks"] = [without_paths(task) for task in stated["tasks"]]
    stated["models"] = [{"name": model["name"]} for model in stated["models"]]
    further = stated["measure"].pop("further")
    for measure in known_measures():
        for settings in (stated["measure"], further):
            if settings.get(measure.kind) is not None:
                settings[measure.kind] = measure.without_places(settings[measure.kind])
    if further:
        stated["measure"]["further"] = further
    return stated


def study_of(stated: JSON) -> Study:
    """The study that facts state. Its models are known by name only; what they are is in the steps."""
    return Study.model_validate({**stated, "models": [model["name"] for model in stated["models"]]})
