"""LoRA (Hu et al. 2021): low-rank updates at the chosen sites, the base frozen, the task head trained.

Its layers are stacked over runs (methods/stacked.py). What it exports is PEFT's adapter format, head included, and it
is read back by peft itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lorascope.errors import StudyError
from lorascope.methods.base import Method, NotStackable
from lorascope.models.adapter_names import readable_adapter
from lorascope.models.heads import run_heads
from lorascope.models.linear import is_transposed, linear_at, linear_shape
from lorascope.models.sites import resolve_sites

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lorascope.methods.stacked import StackedLoRALinear
    from lorascope.models.loading import BaseModel
    from lorascope.study.methods.lora import LoraSpec


class LoRA(Method):
    shares_base = True
    flops_per_parameter = 4
    stacks = True
    change = "low-rank"
    spec: LoraSpec

    def prepare(
        self,
        model: PreTrainedModel,
        *,
        head: Sequence[str],
        generators: Sequence[torch.Generator],
        specs: Sequence[LoraSpec] | None = None,
    ) -> None:
        from lorascope.methods.stacked import StackedLoRALinear, parameter_layers, replace_module, set_run, stack_layer

        specs = [self.spec] * len(generators) if specs is None else specs
        sites = _sites(max(specs, key=lambda spec: spec.rank), model, head)
        head_layers = [name for root in head for name in parameter_layers(model, root)]
        heads = run_heads(model, head, generators)
        model.requires_grad_(False)
        for name in sites:
            layer = StackedLoRALinear(
                linear_at(model, name),
                ranks=[spec.rank for spec in specs],
                alphas=[spec.alpha for spec in specs],
                dropouts=[spec.dropout for spec in specs],
                generators=generators,
            )
            replace_module(model, name, layer)
        for name in head_layers:
            try:
                stack_layer(model, name, runs=len(generators))
            except NotStackable as reason:
                raise StudyError(
                    f"the head of {type(model).__name__} ({', '.join(head)}) cannot be trained beside adapters: {reason}",
                    hint="use full fine-tuning, or another architecture",
                ) from None
            model.get_submodule(name).requires_grad_(True)
        for run, weights in enumerate(heads):
            set_run(model, run, weights)

    def expected_parameters(self, model: PreTrainedModel, *, head: Sequence[str]) -> int:
        """rank * (in + out) summed over the sites, plus the head."""
        layers = [linear_at(model, name) for name in _sites(self.spec, model, head)]
        adapters = sum(self.spec.rank * sum(linear_shape(layer)) for layer in layers)
        return adapters + sum(p.numel() for name in head for p in model.get_submodule(name).parameters())

    def export(self, model: PreTrainedModel, directory: Path, *, base: BaseModel, run: int = 0) -> None:
        from peft import LoraConfig
        from safetensors.torch import save_file

        sites = _sites(self.spec, base.model, base.head)
        state = _adapter_state(self.view(model, run), base.head, sites)
        config = LoraConfig(
            task_type=base.peft_task,
            base_model_name_or_path=base.reference,
            revision=base.revision,
            r=self.spec.rank,
            lora_alpha=self.spec.alpha,  # type: ignore[arg-type] - peft divides it by r, so a float is as good
            lora_dropout=self.spec.dropout,
            target_modules=_shortest_targets(sites, base),
            modules_to_save=list(base.head) or None,
            fan_in_fan_out=all(is_transposed(linear_at(base.model, name)) for name in sites),
            inference_mode=True,
        )
        directory.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(directory))
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, directory / "adapter_model.safetensors")

    def reload(self, directory: Path, *, base: BaseModel) -> nn.Module:
        import torch
        from peft import PeftModel

        pristine = base.copy(torch.Generator().manual_seed(0), share_frozen=False)
        with readable_adapter(directory, pristine) as readable:
            return PeftModel.from_pretrained(pristine, str(readable)).eval()

    def merge(self, reloaded: nn.Module) -> nn.Module:
        return cast("PeftModel", reloaded).merge_and_unload(safe_merge=True)  # type: ignore[operator]


def _sites(spec: LoraSpec, model: PreTrainedModel, head: Sequence[str]) -> list[str]:
    sites = resolve_sites(model, spec.sites, head=head)
    for name in sites:
        out, width = linear_shape(linear_at(model, name))
        widest = min(out, width)
        if spec.rank > widest:
            raise StudyError(
                f"rank {spec.rank} is larger than the layer {name} ({out} x {width})",
                where=f"methods.{spec.name}.rank",
                hint=f"use a rank of at most {widest}, or leave this site out of `sites`",
            )
    return sites


def _adapter_state(model: PreTrainedModel, head: Sequence[str], sites: Sequence[str]) -> dict[str, Tensor]:
    """One run's tensors under PEFT's names."""
    state: dict[str, Tensor] = {}
    for name in sites:
        layer = cast("StackedLoRALinear", model.get_submodule(name))
        state |= {f"{name}.lora_A.weight": layer.lora_A[0], f"{name}.lora_B.weight": layer.lora_B[0]}
    for root in head:
        state |= {f"{root}.{name}": tensor for name, tensor in model.get_submodule(root).named_parameters()}
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def _shortest_targets(sites: Sequence[str], base: BaseModel) -> list[str]:
    """The last parts of the sites' names ("q_proj"), or the full names where those would also match other modules."""
    endings = sorted({name.rpartition(".")[2] for name in sites})
    matched = [n for n, _ in base.model.named_modules() if n.rpartition(".")[2] in endings]
    return endings if set(matched) == set(sites) else list(sites)
