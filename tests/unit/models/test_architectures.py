"""Every family of the table: its roles and parts are there, and methods train, export, reload and merge on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import IMAGES, LAYERS, SETTINGS, tiny_batch, tiny_config, tiny_family
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorascope.drift.adapters import stack_adapters
from lorascope.drift.updates import LowRank, weight_updates
from lorascope.errors import StudyError
from lorascope.methods.base import Method, NotStackable
from lorascope.methods.full import FullFineTuning
from lorascope.methods.lora import LoRA
from lorascope.methods.stacked import view
from lorascope.models.architectures import ARCHITECTURES
from lorascope.models.blocks import attention_modules, find_blocks
from lorascope.models.config_facts import layer_size
from lorascope.models.linear import linear_at, linear_shape, linear_weight
from lorascope.models.loading import BaseModel
from lorascope.models.sites import present_names, resolve_sites, roles_of, spelling_of
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import Seeds
from lorascope.training.preparation import prepared_model
from lorascope.training.stepper import build_no_masks, is_causal

NORMALISED_AFTER = ("bert", "roberta", "electra", "deberta-v2", "distilbert")
NO_GANGS_OF_WHOLE_MODELS = ("deberta-v2", "opt", "gemma", "gemma2", "gemma3_text", *IMAGES)
"""Their embeddings are layers of their own, or shared between the examples of a batch: full runs train one by one."""
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=ARCHITECTURES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(family: str) -> BaseModel:
    return tiny_family(family)


def lora(*sites: str, **settings: Any) -> LoRA:
    return LoRA(LoraSpec(name="l", kind="lora", rank=2, alpha=4, sites=sites or ("all-linear",), **settings))


def full() -> FullFineTuning:
    return FullFineTuning(FullSpec(name="f", kind="full"))


def trained(base: BaseModel, method: Method, *, runs: int = 1) -> Any:
    """A prepared model whose trained weights have moved."""
    model, streams = prepared_model(base, [method] * runs, [Seeds.model_validate(run) for run in range(runs)])
    streams.set(list(range(runs)))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def logits(model: nn.Module, family: str, *, runs: int = 1) -> Tensor:
    batch = {name: t.repeat(runs, *[1] * (t.ndim - 1)) for name, t in tiny_batch(family).items()}
    return model.eval()(**batch).logits


def test_the_tests_know_every_family() -> None:
    assert SETTINGS.keys() == ARCHITECTURES.keys()


def test_every_role_is_one_linear_layer_of_each_block(family: str, base: BaseModel) -> None:
    names = resolve_sites(base.model, ("all-linear",), head=base.head)
    roles, spelling, config = roles_of(base.model, names), spelling_of(base.model), base.model.config.to_dict()
    assert spelling is not None
    for role in spelling.roles:
        assert [name for name in names if roles.get(name) == role] == resolve_sites(base.model, (role,), head=base.head)
        assert list(roles.values()).count(role) == LAYERS
    strangers = [name for name in names if name not in roles]
    assert all(name.endswith(spelling.others) for name in strangers) if strangers else True
    for name, role in roles.items():
        assert linear_shape(linear_at(base.model, name))[::-1] == layer_size(ARCHITECTURES[family], role, config)


def test_every_part_of_the_table_is_there(family: str, base: BaseModel) -> None:
    spelling, blocks = spelling_of(base.model), find_blocks(base.model)
    assert spelling is not None and blocks.is_known and len(blocks.blocks) == LAYERS
    for block in blocks.blocks:
        for part in (*spelling.norms, spelling.attending):
            block.get_submodule(part)
    for part in (*spelling.embeddings, *filter(None, [spelling.final_norm])):
        base.model.base_model.get_submodule(part)
    if ARCHITECTURES[family].hidden_scores is None:
        flags = {bool(module.is_causal) for module in attention_modules(blocks)}
        assert flags == {ARCHITECTURES[family].is_causal}


def test_blocks_add_what_the_table_says_to_the_residual_stream(family: str, base: BaseModel) -> None:
    if family in NORMALISED_AFTER:
        pytest.skip("the stream is normalised after each addition; test_extraction.py follows it")
    found: dict[Any, Tensor] = {}

    def keep(key: Any) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output if isinstance(output, Tensor) else output[0]
            found[key] = tensor.unflatten(0, (4, -1)) if tensor.ndim == 2 else tensor

        return hook

    blocks = find_blocks(base.model)
    for site, modules in (("r", blocks.blocks), ("a", blocks.attentions), ("m", blocks.mlps)):
        for layer, module in enumerate(modules):
            module.register_forward_hook(keep((site, layer)))
    logits(base.model, family)
    moved = found["r", 1] - found["r", 0]
    assert float((moved - found["a", 1] - found["m", 1]).norm() / moved.norm()) < 1e-5


def test_lora_trains_exports_reloads_and_merges(family: str, base: BaseModel, tmp_path: Path) -> None:
    method, alone = lora(dropout=0.1), ARCHITECTURES[family].trains_alone is not None
    runs = 1 if alone else 2
    if alone:
        with pytest.raises(NotStackable, match="takes one run at a time"):
            trained(base, method, runs=2)
    model = trained(base, method, runs=runs)
    batch = {name: t.repeat(runs, *[1] * (t.ndim - 1)) for name, t in tiny_batch(family).items()}
    model.train()(**batch).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    together, directories = logits(model, family, runs=runs).unflatten(0, (runs, -1)), []
    for run in range(runs):
        one = method.view(model, run)
        assert sum(p.numel() for p in one.parameters() if p.requires_grad) == method.expected_parameters(
            base.model, head=base.head
        )
        directories.append(tmp_path / str(run))
        method.export(model, directories[-1], base=base, run=run)
        reloaded = method.reload(directories[-1], base=base)
        torch.testing.assert_close(logits(reloaded, family), together[run], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(logits(method.merge(reloaded), family), together[run], atol=TOLERANCE, rtol=0)
    if not alone:
        beside = view(stack_adapters(base, directories), 1)
        torch.testing.assert_close(logits(beside, family), together[1], atol=TOLERANCE, rtol=0)


def test_full_fine_tuning_trains_exports_and_reloads(family: str, base: BaseModel, tmp_path: Path) -> None:
    method, runs = full(), 1 if family in NO_GANGS_OF_WHOLE_MODELS else 2
    if runs == 1:
        with pytest.raises(NotStackable):
            trained(base, method, runs=2)
    model = trained(base, method, runs=runs)
    batch = {name: t.repeat(runs, *[1] * (t.ndim - 1)) for name, t in tiny_batch(family).items()}
    model.train()(**batch).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    together = logits(model, family, runs=runs).unflatten(0, (runs, -1))
    method.export(model, tmp_path, base=base, run=runs - 1)
    torch.testing.assert_close(logits(method.reload(tmp_path, base=base), family), together[-1], atol=TOLERANCE, rtol=0)


def test_what_drift_reads_of_an_update_is_what_merging_does(tmp_path: Path) -> None:
    """On GPT-2, whose checkpoints keep weights as [in, out]."""
    base = tiny_family("gpt2")
    for method, name in ((lora(), "lora"), (full(), "full")):
        method.export(trained(base, method), tmp_path / name, base=base)
        tuned: Any = method.reload(tmp_path / name, base=base)
        tuned = method.merge(tuned) or tuned
        updates = [u for u in weight_updates(base, tmp_path / name, change=method.change) if u.change is not None]
        assert len(updates) == LAYERS * 4
        for update in updates:
            after = linear_weight(linear_at(tuned, update.matrix.name))
            low = isinstance(update.change, LowRank)
            found = update.matrix.weight + update.change.left @ update.change.right.double() if low else update.change
            torch.testing.assert_close(found.float(), after, atol=1e-6, rtol=0)


def test_an_adapter_with_older_names_is_read_under_the_present_ones(tmp_path: Path) -> None:
    base, method = tiny_family("vit"), lora("query", "mlp-down")
    model = trained(base, method)
    method.export(model, tmp_path / "new", base=base)
    older = {
        "vit.layers": "vit.encoder.layer",
        "attention.q_proj": "attention.attention.query",
        "mlp.fc2": "output.dense",
    }

    def renamed(name: str) -> str:
        for new, old in older.items():
            name = name.replace(new, old)
        return name

    state = {renamed(k): t for k, t in load_file(tmp_path / "new" / "adapter_model.safetensors").items()}
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    (tmp_path / "old").mkdir()
    save_file(state, tmp_path / "old" / "adapter_model.safetensors")
    config["target_modules"] = ["attention.attention.query", "output.dense"]
    (tmp_path / "old" / "adapter_config.json").write_text(json.dumps(config))
    expected = logits(model, "vit")
    torch.testing.assert_close(logits(method.reload(tmp_path / "old", base=base), "vit"), expected)
    torch.testing.assert_close(logits(view(stack_adapters(base, [tmp_path / "old"]), 0), "vit"), expected)
    found, again = ([u.change for u in weight_updates(base, tmp_path / d, change="low-rank")] for d in ("new", "old"))
    assert sum(c is not None for c in again) == 2 * LAYERS
    for one, other in zip(found, again, strict=True):
        assert type(one) is type(other)
        assert not isinstance(one, LowRank) or torch.equal(one.left, other.left)  # type: ignore[union-attr]


def test_a_layer_that_was_split_has_no_present_name() -> None:
    model = tiny_family("dinov2", use_swiglu_ffn=True).model
    old = ["dinov2.encoder.layer.1.mlp.weights_in", "dinov2.encoder.layer.1.attention.attention.query"]
    assert present_names(model, old) == {old[1]: "dinov2.encoder.layer.1.attention.q_proj"}
    assert len(resolve_sites(model, ("mlp",), head=("classifier",))) == 3 * LAYERS


def test_a_dropout_that_is_called_as_a_function_is_refused_by_name() -> None:
    with pytest.raises(StudyError, match="opt calls dropout as a function") as caught:
        trained(tiny_family("opt", dropout=0.1), full())
    assert str(caught.value.hint).startswith('set "dropout": 0.0 in the checkpoint')
    t5 = transformers.T5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, pad_token_id=0)
    model = transformers.AutoModelForSequenceClassification.from_config(t5)
    with pytest.raises(StudyError, match="t5 calls dropout as a function") as caught:
        trained(BaseModel(model, ("classification_head",), 0, "tiny", None), full())
    assert '"dropout_rate": 0.0' in str(caught.value.hint)


def test_causal_models_need_no_mask_unless_their_attention_is_windowed(family: str) -> None:
    windowed = {"mistral", "gemma2", "gemma3_text"}
    model = tiny_family(family).model
    assert is_causal(model) is (ARCHITECTURES[family].is_causal and family not in windowed), tiny_config(family)
    if is_causal(model):
        expected, batch = logits(model, family), tiny_batch(family)
        build_no_masks(model)
        with torch.no_grad():
            found = model(input_ids=batch["input_ids"]).logits
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
