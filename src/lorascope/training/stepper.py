"""One update of a gang, operation by operation or replayed as CUDA graphs.

Small models leave a GPU waiting for the next kernel: a step of thousands of launches takes as long as launching them.
A captured step is launched as one. Each padded length has a graph of its own for forward and backward, and one more
holds clipping and the optimiser. The first update at a length runs plainly, which is a real update and warms it up; the
second is captured.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorascope.training.flat import FlatParameters
from lorascope.training.optimiser import GangOptimiser
from lorascope.training.predict import autocast, model_inputs

if TYPE_CHECKING:
    from lorascope.data.task import Task
    from lorascope.methods.dropout import DropoutStreams
    from lorascope.training.feed import MicroBatch

# Rows of stacked parameters lie apart in memory by design; what is lost by that is nothing, and is said every time.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
_COMPILED_VARIANTS = 64
COMPILED_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""What rounding may change of a run's gradient when kernels are fused, relative to its norm."""
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
        task: Task,
        streams: DropoutStreams,
        flat: FlatParameters,
        optimiser: GangOptimiser,
        device: str,
        precision: str,
    ) -> None:
        self.model, self.task, self.streams = model, task, streams
        self.flat, self.optimiser = flat, optimiser
        self.device, self.precision = device, precision
        self.losses = torch.zeros(flat.runs, device=device)
        self.preparation_seconds = 0.0
        self._needs_mask = not is_causal(model)
        if not self._needs_mask:
            build_no_masks(model)

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
        self.optimiser.step()

    def _compute(self, batch: dict[str, Tensor]) -> None:
        inputs = model_inputs(self.task, {name: t for name, t in batch.items() if name != "weights"})
        if not self._needs_mask:
            inputs.pop("attention_mask", None)
        with autocast(self.device, self.precision):
            logits = self.model(**inputs).logits
        per_example = self.task.loss_per_example(logits.float(), batch) * batch["weights"]
        losses = per_example.view(self.flat.runs, -1).sum(dim=1)
        losses.sum().backward()
        self.losses += losses.detach()


class CapturedStepper(Stepper):
    """The same on CUDA, replayed as graphs. is_compiled: of compiled blocks, if they compute what the plain ones do."""

    def __init__(self, model: nn.Module, *, is_compiled: bool, **parts: Any) -> None:
        super().__init__(model, **parts)
        self.is_compiled = is_compiled
        self._stream = torch.cuda.Stream(self.device)
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
        shape = tuple(host["input_ids"].shape)
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
                    self._graphs[shape] = self._capture(lambda: self._compute(static))
            self._graphs[shape].replay()

    def _apply(self) -> None:
        if self.problem is not None or not self._has_stepped:
            self.optimiser.step()
            self._has_stepped = True
            return
        if self._optimiser_graph is None:
            self._optimiser_graph = self._capture(self.optimiser.step)
        self._optimiser_graph.replay()

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        torch.cuda.synchronize(self.device)
        self.preparation_seconds += time.perf_counter() - start

    def _capture(self, work: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Thread-local: the feed's thread pins memory meanwhile, which a capture would else refuse to any thread.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph

    def _compile_and_compare(self, static: dict[str, Tensor]) -> None:
        """The first pass, plainly and again with compiled blocks, whose gradients must be the same up to rounding."""
        gradients, losses = self.flat.gradients.clone(), self.losses.clone()
        self._compute(static)
        plain, plain_losses = self.flat.gradients.clone(), self.losses.clone()
        self.flat.gradients.copy_(gradients)
        self.losses.copy_(losses)
        blocks = compile_blocks(self.model)
        self._compute(static)
        difference = largest_difference(self.flat.gradients - gradients, plain - gradients)
        tolerance = COMPILED_TOLERANCE[self.precision]
        if not difference <= tolerance:
            for block in blocks:
                del block.forward
            self.flat.gradients.copy_(plain)
            self.losses.copy_(plain_losses)
            self.is_compiled = False
            self.remark = (
                f"compiled blocks changed a run's gradient by {difference:.2g} of its norm (allowed: {tolerance:g}), so "
                "they were not used"
            )

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
    """Whether every attention of the model looks back only, so that padding on the right needs no mask."""
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


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest over runs of |found - expected| / |expected|; both [runs, parameters]."""
    norms = torch.linalg.vector_norm(expected, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return float((torch.linalg.vector_norm(found - expected, dim=1) / norms).max())


def compile_blocks(model: nn.Module) -> list[nn.Module]:
    """Compiles the model's repeated blocks, in place: one compilation serves all of them, at every length. Returns them;
    `del block.forward` undoes it."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED_VARIANTS)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    blocks = list(max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()), default=()))
    trains_embeddings = any(p.requires_grad for p in model.get_input_embeddings().parameters())  # type: ignore[operator]
    # Over frozen embeddings the first block is another program (its input needs no gradient), not worth compiling.
    chosen = blocks if trains_embeddings else blocks[1:]
    for block in chosen:
        block.forward = _with_free_length(torch.compile(block.forward))
    return chosen


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
