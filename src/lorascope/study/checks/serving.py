"""What must hold of the serving part of a study: arms that its runs can fill, nothing without effect."""

from __future__ import annotations

from collections.abc import Iterator

from lorascope.registry import nearest
from lorascope.study.hypothesis import Overhead
from lorascope.study.loading.document import Mistake
from lorascope.study.measure import ServingSpec, arm_name
from lorascope.study.methods.base import MethodBase
from lorascope.study.spec import Study

FEWEST_FOR_A_TAIL = 200
"""Requests behind a 95th percentile of a load: ten lie beyond it."""
_HERE = ("measure", "serving")


def served_method(study: Study, spec: ServingSpec) -> MethodBase | None:
    """The method whose adapters are served: the one named, else the first that has any; None if there is none."""
    with_adapters = [method for method in study.methods if method.has_adapter]
    if spec.method is not None:
        return next((method for method in with_adapters if method.name == spec.method), None)
    return with_adapters[0] if with_adapters else None


def check_serving(study: Study, spec: ServingSpec) -> Iterator[Mistake]:
    """Every mistake that can be seen without an engine or a model."""
    adapters = [arm for arm in spec.arms if arm == "merged" or isinstance(arm, int)]
    method = served_method(study, spec)
    if spec.method is not None and method is None:
        names = [m.name for m in study.methods if m.has_adapter]
        match = nearest(spec.method, names)
        meant = f": did you mean `{match}`?" if match else ""
        text = f"measure.serving.method: the study has no method `{spec.method}` with adapters{meant}"
        yield Mistake((*_HERE, "method"), text, f"its methods with adapters: {', '.join(names) or 'none'}")
    elif adapters and method is None:
        text = f"measure.serving.arms: `{adapters[0]}` needs an adapter, and no method of the study has one"
        yield Mistake((*_HERE, "arms"), text, "add a method such as `lora`, or serve `base` and `full` alone")
    if method is not None and spec.most_adapters and spec.engine not in method.served_by:
        text = f"measure.serving.arms: {spec.engine} cannot serve adapters of kind `{method.kind}` beside the base"
        yield Mistake((*_HERE, "arms"), text, f"serve `merged`, or use an engine that can: {_engines(method)}")
    num_runs = len(study.tasks) * len(study.seeds)
    if spec.most_adapters > num_runs:
        text = (
            f"measure.serving.arms: {spec.most_adapters} adapters side by side need as many runs of one method on a "
            f"model, and the study has {num_runs} ({len(study.tasks)} tasks x {len(study.seeds)} seeds)"
        )
        yield Mistake((*_HERE, "arms"), text, f"serve at most {num_runs}, or add seeds")
    if "full" in spec.arms and not any(m.trains_everything for m in study.methods):
        text = "measure.serving.arms: `full` needs a fully fine-tuned run, and the study has no method of kind full"
        yield Mistake((*_HERE, "arms"), text, "add the method `full`, or remove the arm")
    for key in ("arms", "workloads", "batch_sizes", "request_rates", "choices", "sampling"):
        values = getattr(spec, key)
        if len(set(values)) < len(values):
            twice = next(value for index, value in enumerate(values) if value in values[:index])
            yield Mistake((*_HERE, key), f"measure.serving.{key}: `{twice}` is there twice", "remove one of them")
    yield from _without_effect(spec)


def _engines(method: MethodBase) -> str:
    return ", ".join(method.served_by) or "there is none"


def _without_effect(spec: ServingSpec) -> Iterator[Mistake]:
    """Settings written in the file that would change nothing: their author believes otherwise."""

    def idle(key: str, why: str, hint: str) -> Mistake:
        return Mistake((*_HERE, key), f"measure.serving.{key} has no effect: {why}", hint)

    written = spec.model_fields_set
    if spec.engine == "transformers":
        for key in ("python", "slots", "gpu_memory_fraction", "tune", "kernel_tables"):
            if key in written and getattr(spec, key) is not False:
                yield idle(key, "the engine is transformers", "remove it, or use `engine: vllm`")
    if spec.engine == "vllm-server" and "switching" in written and spec.switching:
        yield idle("switching", "a server keeps the adapters it started with", "remove it, or use `engine: vllm`")
    if "generation" not in spec.workloads:
        for key in ("output_tokens", "sampling"):
            if key in written:
                yield idle(key, "nothing is generated", "remove it, or add `generation` to `workloads`")
    if spec.slots is not None and spec.slots >= spec.most_adapters:
        why = f"at most {spec.most_adapters} adapters are served side by side"
        yield idle("slots", why, "remove it, or give fewer slots than adapters")
    if spec.tune and spec.most_adapters == 0:
        yield idle("tune", "no arm has adapters", "remove it, or add an arm such as 2")
    elif spec.tune and spec.tuned_adapters not in spec.arms:
        text = f"no arm has {spec.tuned_adapters} adapters"
        yield idle("tune", text, f"use one of the arms, such as {spec.most_adapters}, or `true` for the one with most")
    if spec.kernel_tables is not None and not spec.tune:
        yield idle("kernel_tables", "nothing is tuned", "add `tune: true`, or remove it")
    if spec.most_adapters < 2:
        for key in ("choices", "switching"):
            if key in written and getattr(spec, key) not in (False, ()):
                yield idle(key, "no arm has several adapters", "remove it, or add an arm such as 2")


def check_tails(study: Study) -> Iterator[Mistake]:
    """A 95th or 99th percentile of few requests is that of a handful of them. Asked before a study runs; results that there
    are keep their percentiles, with their n."""
    spec = study.measure.serving
    for name, hypothesis in study.hypotheses.items():
        if spec is None or not isinstance(hypothesis, Overhead) or spec.requests >= FEWEST_FOR_A_TAIL:
            continue
        if not hypothesis.on.endswith(("_p95", "_p99")):
            continue
        text = (
            f"hypotheses.{name}: `{hypothesis.on}` needs at least {FEWEST_FOR_A_TAIL} requests a load; "
            f"`measure.serving.requests` is {spec.requests}"
        )
        key = "on" if "on" in hypothesis.model_fields_set else "overhead"
        yield Mistake(("hypotheses", name, key), text, "write `on: latency_mean`, or raise `requests`")


def check_overhead(study: Study, name: str, hypothesis: Overhead) -> Iterator[Mistake]:
    """Both arms are measured, they differ, and what they are compared on exists."""
    spec = study.measure.serving
    if spec is None:
        text = f"hypotheses.{name}: it is about serving, which the study does not measure"
        yield Mistake(("hypotheses", name, "overhead"), text, "add `measure: {serving: {}}`")
        return
    arms = [arm_name(arm) for arm in spec.arms]
    for key in ("overhead", "over"):
        arm = getattr(hypothesis, key)
        if arm not in arms:
            match = nearest(arm, arms)
            meant = f": did you mean `{match}`?" if match else ""
            text = f"hypotheses.{name}: `measure.serving` has no arm `{arm}`{meant}"
            yield Mistake(("hypotheses", name, key), text, f"its arms: {', '.join(arms)}")
    if hypothesis.overhead == hypothesis.over:
        text = f"hypotheses.{name}: `{hypothesis.over}` is compared with itself"
        yield Mistake(("hypotheses", name, "over"), text, "name two different arms")
    if hypothesis.on.startswith("ttft") and "generation" not in spec.workloads:
        text = f"hypotheses.{name}: there is no time to first token where nothing is generated"
        yield Mistake(("hypotheses", name, "on"), text, "add `generation` to `measure.serving.workloads`")
