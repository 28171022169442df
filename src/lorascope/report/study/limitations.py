"""What the study cannot say, computed from its own facts: a limitation that does not apply is not printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lorascope.metrics.cost import COSTS
from lorascope.report.drift.limits import drift_limitations
from lorascope.report.page import wording
from lorascope.report.page.facts import Facts
from lorascope.report.search.rows import searches_of
from lorascope.report.serving.limits import serving_limitations

_SMALL_MODEL = 1_000_000_000
_TRUNCATION_WORTH_NAMING = 0.01


def limitations(facts: Facts) -> tuple[str, ...]:
    """Sentences, the gravest first."""
    return tuple(sentence for rule in _RULES for sentence in rule(facts))


def _missing_runs(facts: Facts) -> Iterator[str]:
    missing = facts.stated.missing_runs
    if missing:
        planned = missing + len(facts.runs)
        yield (
            f"{wording.plural(missing, 'run')} of {planned} planned {'is' if missing == 1 else 'are'} "
            f"missing: every mean "
            "and test here rests on the runs that finished, and a method that fails more often looks better than it is."
        )


def _failed_gates(facts: Facts) -> Iterator[str]:
    failed = [gate for gate in facts.gates if not gate.passed]
    if failed:
        kinds = wording.listing(dict.fromkeys(gate.gate for gate in failed))
        yield (
            f"{wording.plural(len(failed), 'validity gate')} failed ({kinds}): the parts of the study "
            f"behind them prove nothing."
        )


def _unseen_collapse(facts: Facts) -> Iterator[str]:
    """Where no run of an arm collapsed, how many could: 1 - 0.05^(1/n), the exact one-sided 95% bound of 0 in n (Clopper and
    Pearson 1934)."""
    scores = facts.analysis.scores
    fallen = {(run.model, run.task, run.method) for run in facts.analysis.collapsed}
    sound = [len(score.seeds) for score in scores if (score.model, score.task, score.method) not in fallen]
    if not sound:
        return
    runs, bound = min(sound), 1 - 0.05 ** (1 / min(sound))
    arms = "No run" if len(sound) == len(scores) else "In the other arms no run"
    yield (
        f"{arms} collapsed, so verdicts are about runs that do not. With {wording.plural(runs, 'run')} an arm, up to "
        f"{wording.decimal(100 * bound, 0)}% of its runs could collapse and not have been seen (one-sided 95%)."
    )


def _weak_arms(facts: Facts) -> Iterator[str]:
    weak = []
    for score in facts.analysis.scores:
        if score.metric != facts.primary_metric(score.task):
            continue
        style = wording.metric_style(score.metric)
        rivals = [
            row.name
            for row in facts.cell_baselines(score.model, score.task, metric=score.metric)
            if not style.is_better(score.mean, row.mean)
        ]
        if rivals:
            where = facts.place(score.model, score.task)
            side = "not above" if style.direction == "higher" else "not below"
            weak.append(f"{wording.name(score.method)} on {where} ({side} {wording.listing(rivals)})")
    if weak:
        yield (
            f"Some arms learned nothing useful: {wording.listing(weak)}. A difference between such arms is not evidence."
        )


def _seeds(facts: Facts) -> Iterator[str]:
    counts = [len(score.seeds) for score in facts.analysis.scores]
    num_seeds = min(counts, default=0)
    if num_seeds == 1:
        yield (
            "One seed: the effect of initialisation and data order cannot be told from that of the methods; intervals "
            "cover only the sampling of the test set."
        )
    elif 1 < num_seeds < 5:
        floors = [row for row in facts.analysis.comparisons if row.permutation_p is None]
        permutation = (
            f"; a permutation test over seeds could not go below p = {wording.p_value(floors[0].permutation_floor)} "
            f"and would need {wording.plural(floors[0].seeds_needed, 'seed')}"
            if floors
            else ""
        )
        seeds = wording.range_text(counts)
        yield f"{seeds} seeds an arm: the spread between seeds is itself poorly known{permutation}."


def _power(facts: Facts) -> Iterator[str]:
    known = [row for row in facts.analysis.comparisons if row.detectable_difference is not None]
    blind: dict[tuple[str, str], list[str]] = {}
    for row in known:
        margin = _margin(facts, row.method, row.reference)
        if margin is not None and (row.detectable_difference or 0.0) > margin:
            seen = wording.margin_text(row.metric, row.detectable_difference or 0.0)
            pair = f"{wording.name(row.method)} v {wording.name(row.reference)}"
            places = blind.setdefault((wording.margin_text(row.metric, margin), pair), [])
            places.append(f"{facts.place(row.model, row.task)} ({seen})")
    for (margin_text, pair), places in blind.items():
        yield (
            f"{pair}: the margin of {margin_text} is smaller than the difference that would be detected with 80% power "
            f"on {wording.listing(places)}, so the question was hard to decide there."
        )
    for metric in dict.fromkeys(row.metric for row in known):
        sizes = [row.detectable_difference or 0.0 for row in known if row.metric == metric]
        texts = dict.fromkeys(wording.margin_text(metric, size) for size in (min(sizes), max(sizes)))
        by = ", depending on the comparison," if len(texts) > 1 else ""
        label = facts.metric_style(metric, task="*").label
        yield (
            f"True differences in {label} below {' to '.join(texts)}{by} would mostly have "
            f"been missed with these seeds and examples (80% power)."
        )


def _margin(facts: Facts, method: str, reference: str) -> float | None:
    for hypothesis in facts.study.hypotheses.values():
        first = hypothesis.non_inferior or hypothesis.equivalent
        if (first, hypothesis.to) == (method, reference):
            return hypothesis.absolute_margin
    return None


def _learning_rates(facts: Facts) -> Iterator[str]:
    if facts.study.search is not None:
        yield from _search(facts)
        return
    written = {method.name for method in facts.study.methods if not method.hyperparameters}
    rates = [f"{wording.name(m)} {wording.rate(facts.learning_rate(m))}" for m in facts.methods if m in written]
    if not rates:
        yield "Hyper-parameters were taken from files: only their search can show whether all methods were tuned alike."
        return
    yield (
        f"Learning rates were set by the study, not searched ({', '.join(rates)}): a method whose rate suits "
        f"it less well "
        "looks worse than it is."
    )


def _search(facts: Facts) -> Iterator[str]:
    """What equal numbers of trials do not make equal, and optima that may not be the best there is."""
    searches = searches_of(facts)
    given = [method.name for method in facts.study.methods if method.hyperparameters]
    if given:
        names = wording.listing(wording.name(method) for method in given)
        yield f"{names} took hyper-parameters from files and had no search here: the tuning of the methods may differ."
    changed = {row.method for row in searches if {"epochs", "batch_size"} & set(row.space)}
    if changed and changed != {row.method for row in searches}:
        names = wording.listing(wording.name(method) for method in facts.methods if method in changed)
        yield f"Epochs or batch size were searched for {names} alone: numbers of trials are equal, those of updates are not."
    at_edge = sum(bool(row.edges) for row in searches)
    if at_edge:
        yield (
            f"{at_edge} of {wording.plural(len(searches), 'search')} ended at an end of a range (see Search): a better optimum "
            "may lie beyond it."
        )


def _unfinished_learning(facts: Facts) -> Iterator[str]:
    texts = []
    for method in facts.methods:
        runs = [run for run in facts.runs if run.method == method]
        last = [run for run in runs if not run.stopped_early and (run.best_update or 0) >= (run.updates or 0)]
        if last:
            texts.append(f"{len(last)} of {len(runs)} runs of {wording.name(method)}")
    if texts:
        yield (
            f"The last evaluation was the best one in {wording.listing(texts)}: longer training might have gained more."
        )


def _protocol(facts: Facts) -> Iterator[str]:
    if pooled := facts.protocols.get("resplit"):
        yield (
            f"{wording.listing(wording.name(task) for task in pooled)}: the labelled files were pooled and split anew "
            "(`protocol: resplit`), so scores are not comparable with published ones."
        )
    if paper := facts.protocols.get("paper"):
        where = "" if len(facts.protocols) == 1 else f" ({wording.listing(wording.name(task) for task in paper)})"
        yield (
            f"Protocol `paper`{where}: the checkpoint was chosen on the same examples that are reported, so scores "
            "are optimistic. "
            "They serve to reproduce published tables, not to compare methods."
        )


def _data_caps(facts: Facts) -> Iterator[str]:
    caps = facts.study.data
    of_splits = {"train": caps.train_examples, "validation": caps.validation_examples, "test": caps.test_examples}
    named = [f"{split} at most {wording.count(cap)}" for split, cap in of_splits.items() if cap]
    if named:
        yield (
            f"The data were capped ({', '.join(named)} examples a task): scores are not comparable with "
            f"those on whole data sets."
        )


def _truncation(facts: Facts) -> Iterator[str]:
    worst: dict[str, float] = {}
    for task, data in facts.data.items():
        models = data.truncated_fraction.values()
        worst[task] = max((share for splits in models for share in splits.values()), default=0.0)
    cut = [
        f"{wording.fraction(share)} of {wording.name(task)}"
        for task, share in worst.items()
        if share > _TRUNCATION_WORTH_NAMING
    ]
    if cut:
        lengths = {task.settings.get("max_length") or facts.study.train.max_length for task in facts.study.tasks}
        length = f"{wording.listing(str(length) for length in sorted(lengths, key=str))} {facts.unit}s"
        yield f"Texts were cut at {length}: up to {wording.listing(cut)} (worst split and model)."


def _duplicates(facts: Facts) -> Iterator[str]:
    left = [
        f"{wording.plural(number, 'text')} of {wording.name(task)} in both {wording.listing(pair.split('~'))}"
        for task, data in facts.data.items()
        for pair, number in data.duplicates.items()
        if number
    ]
    if left:
        yield f"Duplicates across splits: {wording.listing(left)}."
    dropped = [
        f"{wording.plural(data.dropped_duplicates, 'example')} of {wording.name(task)}"
        for task, data in facts.data.items()
        if data.dropped_duplicates
    ]
    if dropped:
        yield f"Taken out of the earlier split, because they also stand in a later one: {wording.listing(dropped)}."


def _scope(facts: Facts) -> Iterator[str]:
    sizes = {run.model: run.total_parameters for run in facts.runs if run.total_parameters is not None}
    if sizes and max(sizes.values()) < _SMALL_MODEL:
        models = wording.listing(f"{model}, {wording.magnitude(size)}" for model, size in sizes.items())
        subject = "The only model is small" if len(sizes) == 1 else "All models are small"
        yield f"{subject} ({models} parameters): the answer may not hold for models with billions of parameters."
    if len(facts.tasks) == 1:
        yield f"One task ({wording.name(facts.tasks[0])}): the results say nothing about other tasks."


def _measurement(facts: Facts) -> Iterator[str]:
    if not facts.runs:
        return
    absent = [
        COSTS[key].title
        for key in ("energy_joules", "mfu", "peak_memory_bytes")
        if all(wording.as_float(getattr(run, key)) is None for run in facts.runs)
    ]
    devices = sorted({str(run.device) for run in facts.runs})
    if absent:
        yield f"Not measured on {wording.listing(devices)}: {wording.listing(absent)}."
    if len(devices) > 1:
        yield (
            f"Runs were made on different devices ({wording.listing(devices)}): their times cannot be compared directly."
        )
    resumed = sum(bool(run.resumed) for run in facts.runs)
    if resumed:
        yield (
            f"{wording.plural(resumed, 'run')} went on after an interruption; results are unaffected, times "
            f"are summed over the pieces."
        )


def _shared_device(facts: Facts) -> Iterator[str]:
    counts = facts.stated.provenance.hardware.get("workers_on_device") or 1
    most = max(int(count) for count in str(counts).split(", "))
    if most > 1:
        yield (
            f"Up to {most} runs shared a device: times and {facts.unit}s/s were measured while other runs ran and say nothing "
            "about a run alone, and energy cannot be divided among runs; scores and memory are not affected."
        )


def _gangs(facts: Facts) -> Iterator[str]:
    sizes = {
        method: max(int(run.gang or 1) for run in facts.runs if run.method == method)
        for method in dict.fromkeys(run.method for run in facts.runs)
    }
    if max(sizes.values(), default=1) == 1:
        return
    described = wording.listing(f"{method}: {size}" for method, size in sizes.items())
    text = (
        f"Runs were trained together, at most ({described}) at a time: times, {facts.unit}s/s and energy are a run's share, "
        "not what it would take alone (`train.gang: off` measures that); peak memory is that of a run alone, from a probe."
    )
    if len(set(sizes.values())) > 1:
        text += " The gangs differ in size between methods, which favours the times of the larger."
    yield text


def _plain_steps(facts: Facts) -> Iterator[str]:
    for key, what in (("problem", "captured as CUDA graphs"), ("remark", "compiled")):
        said = {
            f"{run.method} on {run.model}: {reason}": None for run in facts.runs if (reason := getattr(run.step, key))
        }
        if said:
            yield f"Updates were not {what} ({'; '.join(said)}); their times are those of slower updates."


def _not_measured(facts: Facts) -> Iterator[str]:
    for part in facts.stated.not_measured:
        where = f"{wording.name(part.method)} on {wording.name(part.task)} with {part.model}"
        yield f"Drift of {where}: {part.what} was not measured. Reason: {part.why}."


def _multiplicity(facts: Facts) -> Iterator[str]:
    number = len(facts.analysis.comparisons)
    if not facts.analysis.hypotheses and number:
        verb = "is exploratory and decides" if number == 1 else "are exploratory and decide"
        yield f"No hypothesis was declared: the {wording.plural(number, 'comparison')} {verb} nothing."


def _dirty_tree(facts: Facts) -> Iterator[str]:
    if facts.stated.provenance.git.get("dirty"):
        yield "The code had uncommitted changes: the recorded commit alone does not reproduce these numbers."


def _notes(facts: Facts) -> Iterator[str]:
    yield from facts.analysis.notes


_RULES: tuple[Callable[[Facts], Iterator[str]], ...] = (
    _missing_runs,
    _failed_gates,
    _weak_arms,
    _unseen_collapse,
    _protocol,
    _seeds,
    _power,
    _learning_rates,
    _unfinished_learning,
    drift_limitations,
    serving_limitations,
    _data_caps,
    _truncation,
    _duplicates,
    _multiplicity,
    _scope,
    _measurement,
    _shared_device,
    _gangs,
    _plain_steps,
    _dirty_tree,
    _not_measured,
    _notes,
)
