"""What must hold of a search beyond its shape: settings that exist, ranges that the samplers can use, nothing without effect,
and trials that share neither seeds nor examples with the runs that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lorascope.errors import StudyError
from lorascope.registry import nearest
from lorascope.study.hyperparameters import checked_value, searchable
from lorascope.study.loading.document import KeyPath, Mistake, dotted
from lorascope.study.methods.base import MethodBase
from lorascope.study.ranges import Range
from lorascope.study.search import PRESETS, SearchSpec
from lorascope.study.spec import Study
from lorascope.study.train import TrainOverrides

FEWEST_SEEDS_TO_PRUNE = 5
"""A trial is stopped at p < 0.1; after three seeds the smallest p-value of a signed-rank test is 1/8, after four it is 1/16,
and to spare anything a fifth must be left."""


def check_search(study: Study, search: SearchSpec) -> Iterator[Mistake]:
    """Every mistake in the search that can be seen without data or a model."""
    searched = [method for method in study.methods if method.hyperparameters is None]
    if not searched:
        text = "search has no effect: every method takes its hyper-parameters from a file"
        yield Mistake(("search",), text, "remove it, or `hyperparameters` from a method")
    if study.protocol == "paper":
        text = "search: under `protocol: paper` trials would be chosen on the test set"
        hint = "search under `strict`, then give a study under `paper` what was found: `hyperparameters: results/STUDY/optimal`"
        yield Mistake(("search",), text, hint)
    yield from _seeds(study, search)
    yield from _budget(study, search)
    yield from _methods_of_the_space(study, search)
    for method in searched:
        yield from _space(study, search, method)


def _seeds(study: Study, search: SearchSpec) -> Iterator[Mistake]:
    known = {seed for seeds in study.seeds for seed in (seeds.initialisation, seeds.order, seeds.dropout)}
    for seed in search.confirming_seeds:
        if seed in known:
            text = f"search.confirm: the best trials are trained with seed {seed} too, which is a seed of the study"
            yield Mistake(("search",), text, "give `search.seeds` another number, or several seeds")
    if "confirm" in search.model_fields_set and search.confirm and len(search.seeds) > 1:
        text = f"search.confirm has no effect: every trial is trained with {len(search.seeds)} seeds already"
        yield Mistake(("search", "confirm"), text, "remove it, or give `seeds` one seed")
    for index, seed in enumerate(search.seeds):
        if seed in known:
            text = f"search.seeds[{index}]: {seed} is a seed of the study, whose runs would not be fresh"
            yield Mistake(("search", "seeds", index), text, "trials need seeds of their own")
        if seed in search.seeds[:index]:
            yield Mistake(("search", "seeds", index), f"search.seeds[{index}]: {seed} is there twice", "give another")
    if search.pruning == "wilcoxon" and len(search.seeds) < FEWEST_SEEDS_TO_PRUNE:
        few = len(search.seeds)
        text = f"search.pruning: wilcoxon spares nothing with {few} seeds: no p-value is below 0.1 before the last"
        yield Mistake(("search", "pruning"), text, f"give at least {FEWEST_SEEDS_TO_PRUNE} `seeds`, or use halving")


def _budget(study: Study, search: SearchSpec) -> Iterator[Mistake]:
    written = search.model_fields_set
    if search.pruning == "halving" and search.sampler == "gp":
        text = "search.pruning: a gp sampler learns from finished trials only, of which halving leaves few"
        yield Mistake(("search", "pruning"), text, "use `sampler: tpe`, which learns from trials that ended early too")
    if search.at_once > search.trials and "at_once" in written:
        text = f"search.at_once: {search.at_once} proposed at once, of {search.trials} trials in all"
        yield Mistake(("search", "at_once"), text, "lower `at_once`, or raise `trials`")
    cap, of_study = search.train_examples, study.data.train_examples
    if cap is not None and of_study is not None and cap >= of_study:
        text = f"search.train_examples has no effect: data.train_examples is {of_study} already"
        yield Mistake(("search", "train_examples"), text, "lower it, or remove it")
    if "proposal_seed" in written and search.sampler == "grid" and _is_whole_grid(study, search):
        text = "search.proposal_seed has no effect: every point of the grid is tried"
        yield Mistake(("search", "proposal_seed"), text, "remove it")
    if search.at_edge == "extend" and search.sampler == "grid":
        text = "search.at_edge: a grid is not extended"
        yield Mistake(("search", "at_edge"), text, "use `at_edge: flag`, or another sampler")


def _is_whole_grid(study: Study, search: SearchSpec) -> bool:
    spaces = [search.space_of(method) for method in study.methods if method.hyperparameters is None]
    return all(math.prod(len(v) for v in s.values() if isinstance(v, tuple)) == search.trials for s in spaces)


def _methods_of_the_space(study: Study, search: SearchSpec) -> Iterator[Mistake]:
    if isinstance(search.space, str):
        return
    names = {method.name: method for method in study.methods}
    for name in search.space:
        if name not in names:
            match = nearest(name, names)
            meant = f": did you mean `{match}`?" if match else ""
            text = f"search.space: the study has no method `{name}`{meant}"
            yield Mistake(("search", "space", name), text, f"its methods: {', '.join(names)}")
        elif names[name].hyperparameters is not None:
            text = f"search.space.{name} has no effect: the method takes its hyper-parameters from a file"
            yield Mistake(("search", "space", name), text, "remove it, or the method's `hyperparameters`")


def _space(study: Study, search: SearchSpec, method: MethodBase) -> Iterator[Mistake]:
    path, space = _path_of(search, method), search.space_of(method)
    if not space:
        text = f"search.space.{method.name}: nothing to search"
        presets = ", ".join(PRESETS)
        yield Mistake(
            path, text, f"give ranges such as {{learning_rate: {{low: 1e-5, high: 1e-3, log: true}}}}, or {presets}"
        )
    if {"alpha", "scale"} <= space.keys():
        text = f"{dotted((*path, 'scale'))}: `alpha` and `scale` say the same (scale = alpha / rank)"
        yield Mistake((*path, "scale"), text, "search one of the two")
    for name, dimension in space.items():
        mistake = _dimension(name, dimension, path=(*path, name), method=method)
        if mistake is not None:
            yield mistake
            continue
        yield from _written_twice(study, method, name)
        if name == "batch_size":
            yield from _micro_batches(study, method, dimension, path=(*path, name))
    if search.sampler == "grid":
        yield from _grid(search, method, space, path=path)


def _path_of(search: SearchSpec, method: MethodBase) -> KeyPath:
    is_own = not isinstance(search.space, str) and method.name in search.space
    return ("search", "space", method.name) if is_own else ("search", "space")


def _dimension(name: str, dimension: Any, *, path: KeyPath, method: MethodBase) -> Mistake | None:
    """What is wrong with one setting's range or list, the first thing only."""
    here, known = dotted(path), searchable(method.kind)
    if name not in known:
        match = nearest(name, known)
        meant = f": did you mean `{match}`?" if match else ""
        return Mistake(
            path, f"{here} has no effect on a method of kind `{method.kind}`{meant}", f"it has {', '.join(known)}"
        )
    values = (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension
    if isinstance(dimension, Range) and name == "schedule":
        return Mistake(path, f"{here}: a schedule has no range", "list them: [linear, cosine]")
    if not isinstance(dimension, Range):
        if len(dimension) < 2:
            found = "an empty list" if not dimension else f"only {dimension[0]}"
            return Mistake(
                path, f"{here}: needs at least 2 values; found {found}", "a single value belongs to the method"
            )
        for index, value in enumerate(dimension):
            if isinstance(value, str) and name != "schedule":
                hint = "remove the quotes" if _is_number(value) else "a list of numbers"
                return Mistake((*path, index), f"{here}[{index}]: expected a number; found the text {value!r}", hint)
            if value in dimension[:index]:
                return Mistake((*path, index), f"{here}[{index}]: {value} is there twice", "remove one")
    for value in values:
        try:
            checked_value(name, value, kind=method.kind)
        except StudyError as error:
            return Mistake(path, f"{here}: {error.message}")
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _written_twice(study: Study, method: MethodBase, name: str) -> Iterator[Mistake]:
    """A value given to the method that the search replaces: its author believes otherwise. A scale turns the alpha of a preset
    into a search of the scale, so there it may be written: the gates before the search are run with it."""
    index = study.methods.index(method)
    in_train = name in TrainOverrides.model_fields
    written = method.train.model_fields_set if in_train else method.model_fields_set
    space = study.search.space if study.search else ""
    is_preset = isinstance(space, str) or isinstance(space.get(method.name, ""), str)
    scaled = getattr(method, "scale", None) is not None
    if scaled and name in ("alpha", "scale"):
        if is_preset:
            return
        text = f"methods[{index}].scale has no effect: the search sets {name}"
        yield Mistake(("methods", index, "scale"), text, "remove it here, or take it out of `search.space`")
    elif name in written:
        path: KeyPath = ("methods", index, "train", name) if in_train else ("methods", index, name)
        text = f"{dotted(path)} has no effect: the search sets it"
        yield Mistake(path, text, "remove it here, or take it out of `search.space`")
    elif name == "scale" and "alpha" in written:
        text = f"methods[{index}].alpha has no effect: the search sets scale, which is alpha / rank"
        yield Mistake(("methods", index, "alpha"), text, "remove it here, or take `scale` out of `search.space`")


def _micro_batches(study: Study, method: MethodBase, dimension: Any, *, path: KeyPath) -> Iterator[Mistake]:
    micro = method.train.micro_batch_size or study.train.micro_batch_size
    sizes = range(int(dimension.low), int(dimension.high) + 1) if isinstance(dimension, Range) else dimension
    if micro and (bad := [size for size in sizes if size % micro]):
        text = f"{dotted(path)}: {bad[0]} is not a multiple of micro_batch_size {micro}"
        yield Mistake(path, text, "list multiples of it, or remove `micro_batch_size`")


def _grid(search: SearchSpec, method: MethodBase, space: Mapping[str, Any], *, path: KeyPath) -> Iterator[Mistake]:
    ranges = [name for name, dimension in space.items() if isinstance(dimension, Range)]
    if ranges:
        text = f"search.space: a grid needs lists of values; {ranges[0]} of `{method.name}` is a range"
        yield Mistake((*path, ranges[0]), text, f"such as `{ranges[0]}: [1, 2, 4]`, or another sampler")
        return
    points = math.prod(len(values) for values in space.values())
    if search.trials > points:
        text = f"search.trials: the grid of `{method.name}` has {points} points, fewer than {search.trials} trials"
        yield Mistake(
            ("search", "trials"), text, f"lower it to {points} (all methods get as many), or list more values"
        )
