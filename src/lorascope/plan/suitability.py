"""Whether the models of a study suit what the study does with them, seen from their config.json before anything starts.

A site that an architecture lacks, a rank beyond a layer, attention that drift cannot read: each would otherwise fail in the
middle of hours of work. What cannot be seen here (a model that is not on this machine yet, an architecture outside the
table) is said, and checked when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorascope.errors import StudyError
from lorascope.models.architectures import FUNCTIONAL_DROPOUT, Architecture, functional_dropout, known_architecture
from lorascope.models.catalog import missing_package
from lorascope.models.config_facts import last_names, layer_size, most_tokens, names_something, roles_meant
from lorascope.models.configuration import model_config
from lorascope.models.sites import unknown_site
from lorascope.plan.checkpoints import check_checkpoint, check_config, lacks_weights
from lorascope.study.loading.document import Mistake, dotted
from lorascope.study.methods.base import MethodBase
from lorascope.study.per_task import own_settings, study_for
from lorascope.study.ranges import Range
from lorascope.study.spec import Study
from lorascope.study.tasks import unit_of


def check_models(study: Study) -> Iterator[Mistake]:
    """Every mistake that the configs of the study's models show, with what single tasks set in the study's place too."""
    known = list(_of_models(study))
    yield from known
    texts = {mistake.text for mistake in known}
    for index, task in enumerate(study.tasks):
        for mistake in _of_models(study_for(study, task)) if own_settings(task) else ():
            if mistake.text not in texts:
                yield Mistake(("tasks", index), f"tasks[{index}] ({task.name}): {mistake.text}", mistake.hint)


def _of_models(study: Study) -> Iterator[Mistake]:
    for index, model in enumerate(study.models):
        config = model_config(model)
        yield from check_config(model, config, index)
        if config is None:
            continue
        yield from _dropout(config, index)
        yield from check_checkpoint(model, config, index, drift=study.measure.drift, reads_text=_reads_text(study))
        architecture = known_architecture(config.get("model_type"))
        yield from _lengths(study, architecture, config, model=model.name)
        yield from _whole_stack(study, config, model=model.name)
        if architecture is None:
            continue
        yield from _inputs(study, architecture, model=model.name)
        for place, method in enumerate(study.methods):
            yield from _sites(study, method, architecture, config, place=place, model=model.name)
        yield from _measures(study, architecture, config, model=model.name)


def require_suitable(study: Study) -> None:
    """Raises StudyError for what `check_models` finds, for a study that was not read from a file."""
    mistakes = list(check_models(study))
    if len(mistakes) == 1:
        raise StudyError(mistakes[0].text, hint=mistakes[0].hint, where=dotted(mistakes[0].path))
    if mistakes:
        listed = [str(StudyError(m.text, hint=m.hint, where=dotted(m.path))) for m in mistakes]
        raise StudyError("\n".join([f"{len(mistakes)} mistakes", *listed]))


def not_checked(study: Study) -> list[str]:
    """What of the study's models could not be checked here, in sentences; nothing of a model whose package is missing, which
    `missing_package` says."""
    remarks = []
    for model in study.models:
        config = model_config(model)
        if config is None and missing_package(model) is None:
            remarks.append(
                f"not checked until the model is here: whether {model.name} has the study's sites, ranks and parts "
                "(there is no config.json of it on this machine)"
            )
        if config is not None and lacks_weights(model):
            remarks.append(
                f"not checked until the model is here: whether the files of {model.name} are whole and may be read"
            )
        if config is not None and known_architecture(config.get("model_type")) is None:
            remarks.append(
                f"{model.name} is a {config.get('model_type')} model, whose layers lorascope knows by their names only: its "
                "sites, parts and head are checked when it is loaded"
            )
    return remarks


def _dropout(config: Mapping[str, Any], index: int) -> Iterator[Mistake]:
    kind = str(config.get("model_type"))
    for name, value in config.items():
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value < 1:
            text = f"models[{index}]: {name} in the model's config.json is {value}, and a probability of dropout is below 1"
            yield Mistake(("models", index), text, "correct it: 0.0 turns dropout off")
    settings = [name for name in FUNCTIONAL_DROPOUT.get(kind, ()) if config.get(name, 0.1)]
    if settings:
        text, hint = functional_dropout(kind, settings)
        yield Mistake(("models", index), f"models[{index}]: {text}", hint)


def _sites(
    study: Study,
    method: MethodBase,
    architecture: Architecture,
    config: Mapping[str, Any],
    *,
    place: int,
    model: str,
) -> Iterator[Mistake]:
    """A method's sites, and its rank if it has one, against the layers there are."""
    kind = str(config["model_type"])
    sites: tuple[str, ...] = getattr(method, "sites", ())
    unknown = [site for site in sites if not names_something(site, architecture)]
    for site in unknown:
        names = last_names(architecture)
        text, hint = unknown_site(site, model_type=kind, roles=architecture.roles, names=names)
        yield Mistake(("methods", place, "sites"), f"methods[{place}].sites: {text} (model {model})", hint)
    rank = _largest_rank(study, method)
    if unknown or rank is None:
        return
    sizes = {role: layer_size(architecture, role, config) for site in sites for role in roles_meant(site, architecture)}
    widest = {role: min(size) for role, size in sizes.items() if size is not None}
    role = min(widest, key=lambda role: widest[role], default=None)
    if role is not None and rank > widest[role]:
        width, out = layer_size(architecture, role, config) or (0, 0)
        text = f"methods[{place}]: rank {rank} is larger than the {role} layers of {model} ({out} x {width})"
        hint = f"use a rank of at most {widest[role]}, or leave this site out of `sites`"
        yield Mistake(("methods", place, "rank"), text, hint)


def _largest_rank(study: Study, method: MethodBase) -> int | None:
    """The method's rank, or the largest that its search may give it."""
    if study.search is not None and method.hyperparameters is None:
        space = study.search.space_of(method).get("rank")
        if space is not None:
            return int(max((space.high,) if isinstance(space, Range) else map(float, space)))
    return getattr(method, "rank", None)


def _reads_text(study: Study) -> bool:
    return any(unit_of(task) in ("token", None) for task in study.tasks)


def _inputs(study: Study, architecture: Architecture, *, model: str) -> Iterator[Mistake]:
    """Images for a model of texts, and the other way round."""
    names = {"token": "texts", "image": "images"}
    for place, task in enumerate(study.tasks):
        unit = unit_of(task)
        if unit in names and unit != architecture.reads:
            text = (
                f"tasks[{place}]: {task.name} is a task of {names[unit]}, and {model} reads {names[architecture.reads]}"
            )
            yield Mistake(("tasks", place), text, f"give this task a model of {names[unit]}, in a study of its own")


def _whole_stack(study: Study, config: Mapping[str, Any], *, model: str) -> Iterator[Mistake]:
    if study.measure.drift is not None and config.get("is_encoder_decoder"):
        text = f"measure.drift: {model} has an encoder and a decoder, and drift follows one list of blocks"
        yield Mistake(("measure", "drift"), text, "remove it, or take a model with one stack")


def _lengths(
    study: Study, architecture: Architecture | None, config: Mapping[str, Any], *, model: str
) -> Iterator[Mistake]:
    """Learned places for tokens against the longest example, and the longest request."""
    most = most_tokens(architecture, config)
    if most is None:
        return
    serving = study.measure.serving
    if serving is not None and serving.prompt_tokens is not None:
        longest = max(serving.prompt_tokens) + (serving.output_tokens if "generation" in serving.workloads else 0)
        if longest > most:
            text = f"measure.serving: a request of {longest} tokens is longer than {model} has places for ({most})"
            hint = "lower `prompt_tokens`, or `output_tokens` where text is generated"
            yield Mistake(("measure", "serving", "prompt_tokens"), text, hint)
    if _reads_text(study) and study.train.max_length > most:
        text = f"train.max_length: {study.train.max_length} tokens are more than {model} has places for ({most})"
        yield Mistake(
            ("train", "max_length"), text, f"use at most {most}; longer examples are cut, and the share is reported"
        )


def _measures(study: Study, architecture: Architecture, config: Mapping[str, Any], *, model: str) -> Iterator[Mistake]:
    drift, serving = study.measure.drift, study.measure.serving
    why = architecture.hidden_scores
    if architecture.capped_by and config.get(architecture.capped_by):
        why = f"it caps its scores ({architecture.capped_by})"
    if drift is not None and drift.attention_examples and why:
        text = f"measure.drift.attention_examples: the attention patterns of {model} cannot be read: {why}"
        yield Mistake(("measure", "drift", "attention_examples"), text, "set it to 0; all other measures are taken")
    if serving is not None and "generation" in serving.workloads and not architecture.is_causal:
        text = f"measure.serving.workloads: {model} is an encoder, which generates no text"
        yield Mistake(("measure", "serving", "workloads"), text, "use `workloads: [classification]`")
