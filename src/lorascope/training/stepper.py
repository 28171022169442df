"""One update of a gang, operation by operation or replayed as CUDA graphs.

Small models leave a GPU waiting for the next kernel: a step of thousands of launches takes as long as launching them.
A captured step is launched as one. Each padded length has a graph of its own for forward and backward, and one more
holds clipping and the optimiser. The first update at a length runs plainly, which is a real update and warms it up; the
second is captured.
"""

from __future__ import annotations

import gc
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorascope.data.batches import MASK
from lorascope.models.architectures import known_architecture
from lorascope.models.blocks import find_blocks, plain_model
from lorascope.models.sites import spelling_of
from lorascope.training.flat import FlatParameters
from lorascope.training.hardware import reset_peak_memory, side_stream
from lorascope.training.optimiser import GangOptimiser
from lorascope.training.reading import Reading
from lorascope.training.shapes import require_shape

if TYPE_CHECKING:
    from lorascope.methods.base import Method, Moment
    from lorascope.methods.dropout import DropoutStreams
    from lorascope.training.feed import MicroBatch

# Rows of stacked parameters lie apart in memory by design; what is lost by that is nothing, and is said every time.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
_COMPILED_VARIANTS = 64
_OTHER_PRECISION = {"bf16": "fp32", "fp32": "bf16"}
_TOLERANCE = {"bf16": (4.0, 1e-2), "fp32": (4e-2, 1e-4)}
"""Fused kernels may change a gradient by so many times what the other precision changes, and at least so much counts
as rounding. Measured: 0.8 to 1.5 times in bf16 where they are right, 20 times with wrong dropout masks."""
_FILL = 0.05
_MASKLESS = "lorascope-causal"
_TOKEN_AXES = {3: (1,), 4: (2, 3)}  # of [examples, tokens, width] and [examples, heads, query, key]


class Stepper:
    """Forward, backward and update for all runs of a model at once. losses: float32 [runs], of the last update.
    preparation_seconds: what compiling and capturing took so far. problem: why updates are not captured after all;
    remark: why blocks are not compiled after all.
    """

    problem: str | None = None
    remark: str | None = None
    is_compiled = False

    def __init__(
        self,
        model: nn.Module,
        *,
        reading: Reading,
        streams: DropoutStreams,
        flat: FlatParameters,
        optimiser: GangOptimiser,
        method: Method,
        moment: Moment,
    ) -> None:
        self.model, self.reading, self.streams = model, reading, streams
        self.flat, self.optimiser = flat, optimiser
        self.method, self.moment = method, moment
        self.losses = torch.zeros(flat.runs, device=self.device)
        self.preparation_seconds = 0.0
        self._needs_mask = not is_causal(model)
        if not self._needs_mask:
            build_no_masks(model)

    @property
    def device(self) -> str:
        return self.reading.device

    def update(
        self, micro_batches: Sequence[MicroBatch], keys: Sequence[Sequence[int]], rates: Sequence[float]
    ) -> Tensor:
        """One update of every run; returns their mean losses, [runs], on the device. keys: each micro-batch's dropout
        keys, one a run. rates: learning rates, one a run."""
        self.optimiser.set_rates(rates)
        self.accumulate(micro_batches, keys)
        self._apply()
        return self.losses.clone()

    def accumulate(self, micro_batches: Sequence[MicroBatch], keys: Sequence[Sequence[int]]) -> Tensor:
        """Adds up the gradients of the runs' mean losses; returns those, [runs], on the device."""
        self.losses.zero_()
        for micro_batch, own in zip(micro_batches, keys, strict=True):
            self.streams.set(own)
            self._forward_backward(micro_batch.tensors)
        return self.losses

    def _forward_backward(self, host: dict[str, Tensor]) -> None:
        self._compute({name: t.to(self.device, non_blocking=True) for name, t in host.items()})

    def _apply(self) -> None:
        self._step()

    def _step(self) -> None:
        self.method.before_step(self.model, moment=self.moment)
        self.optimiser.step()

    def _compute(self, batch: dict[str, Tensor]) -> None:
        inputs = self.reading.model_inputs({name: t for name, t in batch.items() if name != "weights"})
        if not self._needs_mask:
            inputs.pop(MASK, None)
        outputs = self.reading.outputs(self.model, inputs)
        per_example = self.reading.task.scoring.loss_per_example(outputs, batch)
        require_shape(
            f"`loss_per_example` of the task `{self.reading.task.name}`", per_example, batch["weights"], one="row"
        )
        losses = (per_example * batch["weights"]).view(self.flat.runs, -1).sum(dim=1)
        penalty = self.method.penalty(self.model)
        if penalty is None:
            losses.sum().backward()
        else:  # a micro-batch bears its share, so that it counts once an update
            require_shape(f"`{type(self.method).__name__}.penalty`", penalty, losses, one="run")
            shares = batch["weights"].view(self.flat.runs, -1).sum(dim=1)
            (losses + penalty * shares).sum().backward()
        self.losses += losses.detach()


class CapturedStepper(Stepper):
    """The same on CUDA, replayed as graphs. is_compiled: of compiled blocks, if they compute what the plain ones do."""

    def __init__(self, model: nn.Module, *, is_compiled: bool, **parts: Any) -> None:
        super().__init__(model, **parts)
        self.is_compiled = is_compiled
        self._stream = side_stream(self.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._static: dict[tuple[int, ...], dict[str, Tensor]] = {}
        self._graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}
        self._optimiser_graph: torch.cuda.CUDAGraph | None = None
        self._is_checked = self._has_stepped = self._has_begun = False

    def update(
        self, micro_batches: Sequence[MicroBatch], keys: Sequence[Sequence[int]], rates: Sequence[float]
    ) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            losses = super().update(micro_batches, keys, rates)
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        losses.record_stream(torch.cuda.current_stream(self.device))
        return losses

    def _forward_backward(self, host: dict[str, Tensor]) -> None:
        if self.problem is not None:
            return super()._forward_backward(host)
        shape = tuple(next(iter(host.values())).shape)
        is_new = shape not in self._static
        if is_new:
            self._static[shape] = {name: torch.empty_like(t, device=self.device) for name, t in host.items()}
        static = self._static[shape]
        for name, tensor in host.items():
            static[name].copy_(tensor, non_blocking=True)
        if is_new:
            with self._preparing():
                if self.is_compiled and not self._has_begun:
                    self._compile_and_compare(static)
                else:
                    self._compute(static)
            self._has_begun = True
        elif not self._is_checked:
            with self._preparing():
                self._check(static)
        else:
            if shape not in self._graphs:
                with self._preparing():
                    graph = self._capture(lambda: self._compute(static))
                if graph is None:
                    return self._compute(static)
                self._graphs[shape] = graph
            self._graphs[shape].replay()

    def _apply(self) -> None:
        if self.problem is not None or not self._has_stepped:
            self._step()
            self._has_stepped = True
            return
        if self._optimiser_graph is None:
            self._optimiser_graph = self._capture(self._step)
        if self._optimiser_graph is None:
            self._step()
        else:
            self._optimiser_graph.replay()

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        torch.cuda.synchronize(self.device)
        self.preparation_seconds += time.perf_counter() - start

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The work as a graph, not yet done; None, and `problem` set, if it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Thread-local: the feed's thread pins memory meanwhile, which a capture would else refuse to any thread.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            causes = [error, error.__context__]
            if memory := next((c for c in causes if isinstance(c, torch.OutOfMemoryError)), None):
                raise memory from None
            first = causes[1] or error
            self.problem = f"capturing failed: {str(first).splitlines()[0]}"
            return None
        return graph

    def _compile_and_compare(self, static: dict[str, Tensor]) -> None:
        """Compiles the blocks, keeps them if their gradients are the plain ones' up to rounding, and does the first pass.

        A compiler that fails, or a lack of memory for the comparison, leaves the plain blocks. What the comparison needs
        is no part of the run's peak memory.
        """
        blocks: list[nn.Module] = []
        try:
            fault = self._find_fault_of_compiled(static, blocks)
        except Exception as error:  # whatever a compiler may raise: the plain blocks are there
            fault = f"could not be made and compared ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        if fault is not None:
            for block in blocks:
                block.__dict__.pop("forward", None)
            self.is_compiled, self.remark = False, f"compiled blocks {fault}, so they were not used"
        gc.collect()
        reset_peak_memory(self.device)
        self._compute(static)

    def _find_fault_of_compiled(self, static: dict[str, Tensor], blocks: list[nn.Module]) -> str | None:
        """Compared where no weight is zero: behind LoRA's B, which begins there, every mistake would be hidden. Leaves
        weights and gradients as they were, whatever happens. blocks: receives those that were compiled."""
        values, own = self.flat.values.clone(), self.reading
        try:
            noise = torch.empty_like(values).normal_(std=_FILL, generator=torch.Generator(self.device).manual_seed(0))
            self.flat.values.copy_(torch.where(values == 0, noise, values))
            del noise
            plain = self._gradients(static)
            self.reading = own.to(_OTHER_PRECISION[own.precision])
            rounded = self._gradients(static)
            self.reading = own
            blocks += compile_blocks(self.model)
            compiled = self._gradients(static)
        finally:
            self.reading = own
            self.flat.values.copy_(values)
            self.flat.gradients.zero_()
            self.losses.zero_()
        return find_fault(self.flat, compiled, plain=plain, rounded=rounded, precision=own.precision)

    def _gradients(self, static: dict[str, Tensor]) -> Tensor:
        """The gradients of a pass that leaves no trace: [runs, parameters]."""
        self._compute(static)
        gradients = self.flat.gradients.clone()
        self.flat.gradients.zero_()
        self.losses.zero_()
        return gradients

    def _check(self, static: dict[str, Tensor]) -> None:
        """A real pass that watches for what no graph can hold: the host waiting for the device."""
        gradients, losses = self.flat.gradients.clone(), self.losses.clone()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with _as_if_captured():
                self._compute(static)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            self.problem = f"the model makes the host wait for the device ({str(error).splitlines()[0]})"
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        if self.problem is not None:
            self.flat.gradients.copy_(gradients)
            self.losses.copy_(losses)
            self._compute(static)
        self._is_checked = True


@contextmanager
def _as_if_captured() -> Iterator[None]:
    """Models look at the mask's values to save work, but not while a graph is captured."""
    ask = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing = ask


def is_causal(model: nn.Module) -> bool:
    """Whether every attention of the model looks back at all that came before, so that padding on the right needs no
    mask."""
    config: Any = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        return False
    architecture = known_architecture(config.model_type)
    if architecture is not None and not architecture.is_causal:
        return False
    flags = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(flags) and all(flags)


def build_no_masks(model: nn.Module) -> None:
    """Has a causal model attend by the kernels' own causal mode, which is far faster than the mask transformers builds
    for it while a graph is captured."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config: Any = model.config
    if config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(_MASKLESS, sdpa_attention_forward)
    AttentionMaskInterface.register(_MASKLESS, lambda *args, **kwargs: None)
    model.set_attn_implementation(_MASKLESS)  # type: ignore[operator]


def find_fault(flat: FlatParameters, compiled: Tensor, *, plain: Tensor, rounded: Tensor, precision: str) -> str | None:
    """How compiled gradients differ from plain ones by more than rounding, None if they do not. All [runs, parameters].

    rounded: plain gradients in the other precision, the measure of what rounding does to each kind of parameter in each
    run. A run whose plain gradients are broken is not compared.
    """
    factor, least = _TOLERANCE[precision]
    differences, rounding = _differences(flat, compiled, plain), _differences(flat, rounded, plain)
    # A run whose examples cancel has large rounding everywhere; a kind of one small layer may show little by chance.
    typical = torch.stack(list(rounding.values())).median(dim=0).values.tolist()
    for kind, of_kind in rounding.items():
        for difference, own, of_run in zip(differences[kind].tolist(), of_kind.tolist(), typical, strict=True):
            usual = max(own, of_run, least)
            if math.isfinite(own) and not difference <= factor * usual:
                return f"changed the gradient of {kind} by {difference:.2g} of its norm, where rounding changes {usual:.2g}"
    return None


def _differences(flat: FlatParameters, found: Tensor, expected: Tensor) -> dict[str, Tensor]:
    """|found - expected| / |expected| for each kind of parameter, the median over layers: float32 [runs]; 0 where both are
    0, NaN where expected is not finite, infinite where only found is not.

    The median, because rounding alone may change a layer's gradient wholly where the run's happens to cancel in it.
    """
    kinds: dict[str, list[Tensor]] = {}
    for name, place in flat.places.items():
        theirs, ours = (array[:, place.start : place.stop].double() for array in (expected, found))
        difference, norm = torch.linalg.vector_norm(ours - theirs, dim=1), torch.linalg.vector_norm(theirs, dim=1)
        ratio = torch.where(difference == 0, 0.0, difference / norm)
        ratio = torch.where(torch.isfinite(difference), ratio, math.inf)
        ratio = torch.where(torch.isfinite(norm), ratio, math.nan)
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(ratio.float())
    return {kind: torch.stack(ratios).median(dim=0).values for kind, ratios in kinds.items()}


def compile_blocks(model: nn.Module) -> list[nn.Module]:
    """Compiles the model's repeated blocks, in place: one compilation serves all of them, at every length. Returns them;
    `del block.forward` undoes it."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED_VARIANTS)
    blocks = _repeated_blocks(model)
    trains_embeddings = any(p.requires_grad for p in model.get_input_embeddings().parameters())  # type: ignore[operator]
    # Over frozen embeddings the first block is another program (its input needs no gradient), not worth compiling.
    chosen = blocks if trains_embeddings else blocks[1:]
    for block in chosen:
        block.forward = _with_free_length(torch.compile(block.forward))
    return chosen


def _repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Those of a known architecture, else the largest list of modules."""
    if spelling_of(plain_model(model)) is not None:
        return list(find_blocks(model).blocks)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    return list(max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()), default=()))


def _with_free_length(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, told that the token axes of what it is given vary from call to call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, Tensor):
                    for axis in _TOKEN_AXES.get(tensor.ndim, ()):
                        torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return forward(*args, **kwargs)

    return call
