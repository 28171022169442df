"""How numbers and names are written for people: percent with one decimal, signs on differences, units always.

The one idea: every number of a report passes through here, so that a missing value is a dash (never "nan"), and
a difference in accuracy is always "points", never an ambiguous "%".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from lorascope.metrics import cost, serving
from lorascope.metrics.metric import Direction
from lorascope.metrics.quality import QUALITY
from lorascope.stats.analysis import Comparison, HypothesisResult, Interval
from lorascope.study.methods import method_specs

ABSENT = "–"
MINUS = "−"
_ROUNDING = 1e-9

_NAMES = {
    "adalora": "AdaLoRA",
    "dora": "DoRA",
    "qlora": "QLoRA",
    "mrpc": "MRPC",
    "sst2": "SST-2",
    "rte": "RTE",
}


def name(identifier: str) -> str:
    """The literature's spelling of a method or task; a name the study made up stays as it is."""
    return _NAMES.get(identifier) or _method_titles().get(identifier) or identifier


@cache
def _method_titles() -> dict[str, str]:
    return {kind: spec.title for kind, spec in method_specs().items()}


def as_float(value: float | int | None) -> float | None:
    """None for what is absent or not a number; infinities stay (an odds ratio may be unbounded)."""
    return None if value is None or math.isnan(float(value)) else float(value)


def decimal(value: float | int | None, digits: int = 1, *, signed: bool = False) -> str:
    """Fixed digits, thousands separated, a true minus sign, and no sign on what rounds to zero."""
    number = as_float(value)
    if number is None:
        return ABSENT
    if math.isinf(number):
        return "∞" if number > 0 else MINUS + "∞"
    rounded = round(number, digits)
    sign = MINUS if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded):,.{digits}f}"


def significant(value: float | int | None, digits: int = 2) -> str:
    """`digits` significant digits without an exponent: 0.42, 1.3, 12, 1,240."""
    number = as_float(value)
    if number is None or math.isinf(number) or number == 0:
        return decimal(number, 0)
    return decimal(number, max(0, digits - 1 - math.floor(math.log10(abs(number)))))


def compact(value: float | None) -> str:
    """Three significant digits, with an exponent only below a thousandth: 0.041, 1e-5."""
    number = as_float(value)
    if number is not None and 0 < abs(number) < 1e-3:
        return rate(number)
    return significant(number, 3)


def fraction(value: float | None, digits: int = 1) -> str:
    """A 0-1 fraction as a percentage."""
    number = as_float(value)
    return ABSENT if number is None else f"{decimal(number * 100, digits)}%"


def count(value: float | int | None) -> str:
    return decimal(value, 0)


def plural(number: int, noun: str) -> str:
    """ "1 seed", "277 examples"."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{number:,} {noun}{ending}"


def listing(items: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    words = list(items)
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def duration(seconds: float | None) -> str:
    number = as_float(seconds)
    if number is None:
        return ABSENT
    for limit, unit, size in ((1, "ms", 1e-3), (120, "s", 1.0), (7200, "min", 60.0), (math.inf, "h", 3600.0)):
        if number < limit:
            return f"{significant(number / size, 3)} {unit}"
    return ABSENT


def bytes_text(value: float | int | None) -> str:
    number = as_float(value)
    if number is None:
        return ABSENT
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{significant(number, 3)} {unit}"
        number /= 1024
    return f"{significant(number, 3)} TiB"


def magnitude(value: float | int | None) -> str:
    """Parameter counts: 294,912 -> "295 k"; 22,713,728 -> "22.7 M"."""
    number = as_float(value)
    if number is None:
        return ABSENT
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{significant(number / size, 3)} {unit}"
    return count(number)


def drift(value: float | None) -> str:
    """A drift, or another number between 0 and about 1 of which the first two digits matter: 0.41, 0.0032, 4.1e-5.

    What rounding makes of no drift at all (below 1e-9) is 0.
    """
    number = as_float(value)
    if number is not None and abs(number) <= _ROUNDING:
        return "0"
    if number is not None and 0 < abs(number) < 1e-3:
        mantissa, exponent = f"{abs(number):.1e}".split("e")
        return f"{MINUS if number < 0 else ''}{float(mantissa):g}e{int(exponent)}"
    return significant(number)


def signed_drift(value: float | None) -> str:
    """The same with a sign: +0.012, −0.0031."""
    number = as_float(value)
    return f"+{drift(number)}" if number is not None and number > 0 else drift(number)


def percentage(value: float | None) -> str:
    """A small 0-1 fraction as a percentage of two significant digits: 12%, 0.34%."""
    number = as_float(value)
    return ABSENT if number is None else f"{drift(number * 100)}%"


def two_digits(value: float | None) -> str:
    return decimal(value, 2)


def three_digits(value: float | None) -> str:
    return decimal(value, 3)


def ratio(value: float | None) -> str:
    """A ratio: 0.42, 1.31, 0.031."""
    number = as_float(value)
    return decimal(number, 2) if number is None or abs(number) >= 0.095 else significant(number)


def ratio_range(interval: Interval | None) -> str:
    """ "0.35 to 0.51"."""
    return ABSENT if interval is None else f"{ratio(interval.low)} to {ratio(interval.high)}"


def p_equals(p: float | None) -> str:
    """ "p = 0.012", "p < 0.001"."""
    return f"p = {p_value(p)}".replace("= <", "< ")


def p_value(p: float | None) -> str:
    number = as_float(p)
    return ABSENT if number is None else "<0.001" if number < 0.001 else f"{number:.3f}"


def rate(value: float | None) -> str:
    """A learning rate as people write it: 5e-5."""
    number = as_float(value)
    if number is None:
        return ABSENT
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# ------------------------------------------------------------------------------------------------------------ metrics


_UNITS = {"nat": "nats", "1": "", "fraction": ""}


@dataclass(frozen=True)
class MetricStyle:
    """How a metric is written. scale: factor from its own unit; unit follows a value, gap_unit follows a difference.

    low, high: the values the metric can take, in its own unit; None where it has no bound. direction: which is better.
    """

    label: str
    scale: float
    digits: int
    unit: str
    gap_unit: str
    low: float | None = None
    high: float | None = None
    direction: Direction = "higher"

    @property
    def axis(self) -> str:
        """ "accuracy (%)", "perplexity, lower is better"."""
        return (f"{self.label} ({self.unit})" if self.unit else self.label) + self.note

    @property
    def gap_axis(self) -> str:
        return f"difference in {self.label} ({self.gap_unit})" if self.gap_unit else f"difference in {self.label}"

    def is_better(self, value: float, than: float) -> bool:
        return value > than if self.direction == "higher" else value < than

    @property
    def note(self) -> str:
        """What an axis says of the direction: nothing where it is the usual one."""
        return "" if self.direction == "higher" else ", lower is better"


COSTS = {name: row.title for name, row in cost.CLAIMED.items()}

SERVED = {claim: row.cost for claim, row in serving.CLAIMED.items()}
"""What hypotheses about the overhead of serving are on; throughput as the time it takes."""

# Compared as a share of the reference's, not by a difference.
RATIOS = {**COSTS, "drift": "drift from the base", **SERVED}


_SHARE = "share of "


def share_of(metric: str) -> str:
    """The name of a score as a share of the reference's, as a relative margin has it."""
    return _SHARE + metric


def unshared(metric: str) -> str:
    """What `share_of` was given."""
    return metric.removeprefix(_SHARE)


def is_share(metric: str) -> bool:
    """Whether the numbers of a metric are shares of the reference's: costs, drift, and scores by `share_of`."""
    return metric in RATIOS or metric.startswith(_SHARE)


def metric_style(metric: str) -> MetricStyle:
    """Known metrics by name; costs and drift as a percentage of the reference's (a hypothesis compares them so). One without
    a row here (of a plug-in that is not installed) is written plainly."""
    if metric in RATIOS:
        return MetricStyle(f"{RATIOS[metric]}, share of the reference's", 100, 1, "%", "%")
    if is_share(metric):
        label = metric_style(unshared(metric)).label
        return MetricStyle(f"{label}, share of the reference's", 100, 1, "%", "%")
    row = QUALITY.get(metric)
    if row is None:
        return MetricStyle(metric.replace("_", " "), 1, 3, "", "")
    unit = _UNITS.get(row.unit, row.unit)
    units = ("%", "points") if row.in_points else (unit, unit)
    return MetricStyle(row.title, row.scale, row.digits, *units, row.low, row.high, row.direction)


def score(metric: str, value: float | None) -> str:
    style = metric_style(metric)
    number = as_float(value)
    if number is None:
        return ABSENT
    scaled = number * style.scale
    text = significant(scaled, 3 if scaled < 100 else 4) if is_share(metric) else decimal(scaled, style.digits)
    return text + ("" if not style.unit else style.unit if style.unit == "%" else f" {style.unit}")


def gap(metric: str, value: float | None, *, unit: bool = True) -> str:
    """A signed difference: "−0.4 points". For a cost or drift its share of the reference's: "41.0%"."""
    if is_share(metric):
        return score(metric, value)
    style = metric_style(metric)
    number = as_float(value)
    if number is None:
        return ABSENT
    text = decimal(number * style.scale, style.digits, signed=True)
    return f"{text} {style.gap_unit}" if unit and style.gap_unit else text


def margin_text(metric: str, margin: float) -> str:
    """An unsigned amount of difference: "3.0 points"."""
    style = metric_style(metric)
    text = decimal(abs(margin) * style.scale, style.digits)
    return f"{text} {style.gap_unit}" if style.gap_unit else text


def score_range(metric: str, interval: Interval | None) -> str:
    if interval is None:
        return ABSENT
    style = metric_style(metric)
    low, high = (decimal(end * style.scale, style.digits) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def gap_range(metric: str, interval: Interval | None) -> str:
    """ "−2.1 to +1.3"."""
    if interval is None:
        return ABSENT
    return f"{gap(metric, interval.low, unit=False)} to {gap(metric, interval.high, unit=False)}"


def estimate_text(result: HypothesisResult, metric: str | None) -> str:
    """ "−1.8 points (90% interval −3.1 to −0.5)": the average of a hypothesis, else its one part. metric: what it is of."""
    interval = result.average
    if interval is None and len(result.parts) == 1:
        interval = result.parts[0].estimate
    if interval is None:
        return ABSENT
    style = metric or ""
    return f"{gap(style, interval.estimate)} ({confidence(interval)} {gap_range(style, interval)})"


def plain_range(interval: Interval | None, *, signed: bool = False) -> str:
    """estimate (low to high) of a unitless effect, such as Hedges g or an odds ratio."""
    if interval is None:
        return ABSENT
    estimate, low, high = (decimal(v, 2, signed=signed) for v in (interval.estimate, interval.low, interval.high))
    return f"{estimate} ({low} to {high})"


def confidence_of(intervals: Iterable[Interval | None]) -> str:
    """ "95% interval" of several that share their confidence."""
    return listing(dict.fromkeys(confidence(interval) for interval in intervals if interval is not None))


def confidence(interval: Interval) -> str:
    return f"{decimal(interval.confidence * 100, 0)}% interval"


def sample(num_seeds: int, num_examples: int, *, unit: str = "seed") -> str:
    """ "5 seeds × 277 examples"; a cost has no examples. unit: what the number is of, where not seeds ("repeat")."""
    if not num_examples:
        return plural(num_seeds, unit)
    return f"{plural(num_seeds, 'seed')} × {plural(num_examples, 'example')}"


def gap_sentence(comparison: Comparison, *, place: str, style: MetricStyle | None = None) -> str:
    """ "LoRA loses 0.4 points of accuracy against full fine-tuning on RTE (95% interval −2.1 to +1.3; ...)"."""
    arms = name(comparison.method), name(comparison.reference)
    difference = comparison.difference.estimate
    change = change_text(comparison.metric, difference, arms=arms, joint=f" on {place}", style=style)
    interval = f"{confidence(comparison.difference)} {gap_range(comparison.metric, comparison.difference)}"
    n = sample(comparison.num_seeds, comparison.num_examples)
    return f"{change.replace('the ', 'The ', 1) if change.startswith('the ') else change} ({interval}; {n})."


def change_text(
    metric: str, difference: float, *, arms: tuple[str, str], joint: str = "", style: MetricStyle | None = None
) -> str:
    """ "LoRA loses 0.4 points of accuracy against full fine-tuning"; "the perplexity of LoRA is 0.280 higher (worse) than
    that of full fine-tuning". difference: of the first arm from the second, in the metric's own unit. joint: what follows.
    style: where the metric is written otherwise than everywhere."""
    style, (first, second) = style or metric_style(metric), arms
    size = decimal(abs(difference) * style.scale, style.digits)
    amount = f"{size} {style.gap_unit}" if style.gap_unit else size
    is_same = float(size.replace(",", "")) == 0
    if style.direction == "higher":
        if is_same:
            return f"{first} scores the same {style.label} as {second}{joint}"
        return f"{first} {'loses' if difference < 0 else 'gains'} {amount} of {style.label} against {second}{joint}"
    if is_same:
        return f"{first} has the same {style.label} as {second}{joint}"
    how = "lower (better)" if difference < 0 else "higher (worse)"
    return f"the {style.label} of {first} is {amount} {how} than that of {second}{joint}"


def sentence(text: str) -> str:
    """The text with a capital at its beginning and a full stop at its end; a name such as `minilm-l6` stays small."""
    first = text.split(" ", 1)[0]
    text = text if any(character in first for character in "-_0123456789") else text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def range_text(values: Sequence[float], digits: int = 0) -> str:
    """ "277" or "277 to 1,821"."""
    low, high = decimal(min(values), digits), decimal(max(values), digits)
    return low if low == high else f"{low} to {high}"
