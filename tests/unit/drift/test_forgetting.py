"""Forgetting: losses equal to transformers' own, windows equal for all models, heads where there are any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WORDS, tiny_base
from tokenizers import processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
)

from lorascope.drift.forgetting import Forgetting, TextLoss, load_language_head, text_loss
from lorascope.drift.text import TextWindows, causal_windows, masked_windows
from lorascope.errors import StudyError
from lorascope.methods.base import Method
from lorascope.methods.full import FullFineTuning
from lorascope.methods.lora import LoRA
from lorascope.models.loading import BaseModel
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import Seeds
from lorascope.training.preparation import prepared_model

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 17,
    "pad_token_id": 0, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
MASK = 16
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "tied-llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SHAPE, type_vocab_size=1)),
}
METHODS: dict[str, Method] = {
    "full": FullFineTuning(FullSpec(name="full", kind="full")),
    "lora": LoRA(LoraSpec.model_validate({"name": "lora", "kind": "lora", "rank": 3, "sites": ["query", "value"]})),
}


@pytest.fixture(scope="session")
def language_models(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]) -> dict[str, Path]:
    """name -> a random checkpoint with its language-model head and tokenizer."""
    root = tmp_path_factory.mktemp("language-models")
    for name, make in MODELS.items():
        torch.manual_seed(3)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():  # no bias is 0
                parameter += 0.1 * torch.randn(parameter.shape)
        model.save_pretrained(root / name)
        tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints["llama" if "llama" in name else name])
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
        assert tokenizer.mask_token_id == MASK
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in MODELS}


@pytest.fixture(params=MODELS)
def checkpoint(request: pytest.FixtureRequest, language_models: dict[str, Path]) -> Path:
    return language_models[request.param]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "held-out.txt"
    words = np.random.default_rng(0).choice(WORDS, size=209)
    file.write_text("\n".join(" ".join(words[i : i + 7]) for i in range(0, 209, 7)), encoding="utf-8")
    return file


def windows_of(checkpoint: Path, text: Path, *, length: int = 20) -> TextWindows:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if "llama" in checkpoint.name:
        return causal_windows(text, tokenizer, length=length)
    return masked_windows(text, tokenizer, length=length, generator=np.random.default_rng(1))


def loss_of(model: nn.Module, checkpoint: Path, windows: TextWindows, **options: Any) -> TextLoss:
    head = load_language_head(checkpoint, device="cpu")
    return text_loss(model, head, windows, **{"precision": "fp32", **options})


def reloaded(base: BaseModel, method: Method, directory: Path, *, moves: float) -> nn.Module:
    """A run of the method whose trained weights all moved by random amounts, exported and read back."""
    model, _ = prepared_model(base, [method], [Seeds.model_validate(1)])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += moves * torch.randn(parameter.shape, generator=generator)
    method.export(model, directory, base=base)
    return method.reload(directory, base=base)


@torch.no_grad()
def transformers_loss(model: Any, windows: TextWindows) -> list[float]:
    """Per window, what a language model of transformers says when it is given labels."""
    losses = []
    for tokens, targets, is_scored in zip(windows.tokens, windows.targets, windows.is_scored, strict=True):
        if windows.objective == "causal":  # it shifts the labels itself
            labels = np.concatenate([[-100], np.where(is_scored, targets, -100)[:-1]])
        else:
            labels = np.where(is_scored, targets, -100)
        given = {"input_ids": torch.from_numpy(tokens)[None], "labels": torch.from_numpy(labels)[None]}
        losses.append(float(model(**given).loss))
    return losses


# ---------------------------------------------------------------------------------------------------------------- loss


def language_model(checkpoint: Path) -> Any:
    auto = AutoModelForCausalLM if "llama" in checkpoint.name else AutoModelForMaskedLM
    return auto.from_pretrained(checkpoint, dtype=torch.float32).eval()


def test_the_bases_loss_is_that_of_transformers(checkpoint: Path, text: Path) -> None:
    windows = windows_of(checkpoint, text)
    found = loss_of(tiny_base(checkpoint).model, checkpoint, windows)
    np.testing.assert_allclose(found.per_window, transformers_loss(language_model(checkpoint), windows), atol=1e-6)
    assert found.nats_per_token == pytest.approx(found.per_window.mean())
    assert found.num_tokens == windows.is_scored.sum()


@pytest.mark.parametrize("method", METHODS)
def test_a_runs_loss_is_that_of_its_weights_in_a_language_model(
    checkpoint: Path, text: Path, method: str, tmp_path: Path
) -> None:
    """The merged run's backbone written into transformers' language model of the base, tied as that model ties."""
    base, windows = tiny_base(checkpoint), windows_of(checkpoint, text)
    tuned = reloaded(base, METHODS[method], tmp_path, moves=0.05)
    found = loss_of(tuned, checkpoint, windows)
    expected = language_model(checkpoint)
    before = transformers_loss(expected, windows)
    merged: Any = METHODS[method].merge(tuned) or tuned
    expected.base_model.load_state_dict(merged.base_model.state_dict(), strict=False)
    expected.tie_weights()
    np.testing.assert_allclose(found.per_window, transformers_loss(expected, windows), atol=1e-5)
    assert np.abs(found.per_window - before).max() > 1e-2


@pytest.mark.parametrize(("name", "is_tied"), [("llama", False), ("tied-llama", True), ("bert", True)])
def test_a_tied_head_moves_with_the_embedding_and_an_own_one_does_not(
    language_models: dict[str, Path], name: str, is_tied: bool
) -> None:
    head = load_language_head(language_models[name], device="cpu")
    embedding = tiny_base(language_models[name]).model.get_input_embeddings().weight
    hidden = torch.randn(5, 32)
    assert (head.tied is not None) == is_tied
    assert torch.equal(head.logits(hidden, embedding), head.logits(hidden, embedding + 1)) == (not is_tied)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_did_not_move_forgets_exactly_nothing(
    checkpoint: Path, text: Path, method: str, tmp_path: Path
) -> None:
    base, windows = tiny_base(checkpoint), windows_of(checkpoint, text)
    tuned = reloaded(base, METHODS[method], tmp_path, moves=0)
    forgotten = Forgetting(loss_of(base.model, checkpoint, windows), loss_of(tuned, checkpoint, windows))
    assert forgotten.per_window.tolist() == [0.0] * len(windows.tokens)
    assert forgotten.nats_per_token == 0


def test_chunks_and_batches_do_not_matter(checkpoint: Path, text: Path) -> None:
    windows, model = windows_of(checkpoint, text), tiny_base(checkpoint).model
    whole = loss_of(model, checkpoint, windows, tokens_a_batch=10**6)
    for options in ({"tokens_a_batch": 1}, {"tokens_a_batch": 60}, {"logits_at_once": 1}, {"logits_at_once": 17 * 7}):
        other = loss_of(model, checkpoint, windows, **options)
        np.testing.assert_allclose(other.per_window, whole.per_window, atol=1e-6)


def test_no_more_logits_than_allowed_are_made_at_once(
    language_models: dict[str, Path], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, sizes = language_models["llama"], []
    cross_entropy = nn.functional.cross_entropy

    def noting(logits: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        sizes.append(logits.numel())
        return cross_entropy(logits, *args, **options)

    monkeypatch.setattr(nn.functional, "cross_entropy", noting)
    windows = windows_of(checkpoint, text)
    loss_of(tiny_base(checkpoint).model, checkpoint, windows, logits_at_once=17 * 7)
    assert max(sizes) == 17 * 7
    assert sum(sizes) == 17 * windows.is_scored.sum()


def test_bf16_is_near_fp32(checkpoint: Path, text: Path) -> None:
    windows, model = windows_of(checkpoint, text), tiny_base(checkpoint).model
    exact, rounded = (loss_of(model, checkpoint, windows, precision=p).nats_per_token for p in ("fp32", "bf16"))
    assert 0 < abs(exact - rounded) < 0.02


def test_the_models_mode_is_left_as_it_was(language_models: dict[str, Path], text: Path) -> None:
    checkpoint, model = language_models["bert"], tiny_base(language_models["bert"]).model
    windows = windows_of(checkpoint, text)
    evaluating = loss_of(model, checkpoint, windows).per_window
    training = loss_of(model.train(), checkpoint, windows).per_window  # its dropout must be off
    assert model.training
    np.testing.assert_array_equal(training, evaluating)


# ------------------------------------------------------------------------------------------------------------- windows


def test_causal_windows_cut_the_text_without_overlap(language_models: dict[str, Path], text: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_models["llama"])
    windows = causal_windows(text, tokenizer, length=20)
    ids = tokenizer(text.read_text())["input_ids"]
    assert windows.tokens.shape == (10, 20)
    assert windows.tokens.ravel().tolist() == ids[:200]
    assert windows.targets[:, :-1].tolist() == windows.tokens[:, 1:].tolist()
    assert windows.is_scored.sum(axis=1).tolist() == [19] * 10
    assert not windows.is_scored[:, -1].any()


def test_windows_begin_as_the_tokenizer_begins_a_text(language_models: dict[str, Path], text: Path) -> None:
    """With a token for the beginning, every token of the text is scored; one for the end would be none of the text's."""
    tokenizer = AutoTokenizer.from_pretrained(language_models["llama"])
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    windows = causal_windows(text, tokenizer, length=20)
    assert windows.tokens.shape == (11, 20)
    assert set(windows.tokens[:, 0]) == {2}
    assert not (windows.tokens == 3).any()
    assert windows.targets[windows.is_scored].tolist() == windows.tokens[:, 1:].ravel().tolist()


def test_masks_are_the_generators_and_spare_special_tokens(language_models: dict[str, Path], text: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_models["bert"])
    one, same, other = (
        masked_windows(text, tokenizer, length=22, generator=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert one.tokens.tolist() == same.tokens.tolist() != other.tokens.tolist()
    assert one.targets.tolist() == other.targets.tolist()
    assert one.is_scored.sum(axis=1).tolist() == [3] * len(one.tokens)  # 15% of 20
    assert (one.tokens[one.is_scored] == MASK).all()
    assert (one.tokens[~one.is_scored] == one.targets[~one.is_scored]).all()
    assert set(one.tokens[:, 0]) == {2} and set(one.tokens[:, -1]) == {3}


# -------------------------------------------------------------------------------------------------------------- errors


def refusal(make: Any, hidden: Path) -> str:
    with pytest.raises(StudyError) as caught:
        make()
    return str(caught.value).replace(str(hidden), "DIR")


def test_a_text_that_is_no_utf8_is_refused(language_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes("the film is go\xf6d".encode("latin-1"))
    assert refusal(lambda: windows_of(language_models["llama"], tmp_path / "text.txt"), tmp_path) == (
        "the text DIR/text.txt is not UTF-8: byte 14 is 0xf6\n  hint: convert it: iconv -f ENCODING -t UTF-8 text.txt"
    )


def test_a_text_shorter_than_two_windows_is_refused(language_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the film is good " * 8)
    assert refusal(lambda: windows_of(language_models["bert"], tmp_path / "text.txt"), tmp_path) == (
        "the text DIR/text.txt has 32 tokens, fewer than two windows of 18\n"
        "  hint: give a text of at least 36 tokens (some 180 characters), or shorter windows"
    )


def test_a_missing_text_is_refused(language_models: dict[str, Path], tmp_path: Path) -> None:
    assert refusal(lambda: windows_of(language_models["llama"], tmp_path / "none.txt"), tmp_path) == (
        "the text DIR/none.txt cannot be read: No such file or directory\n  hint: name a plain text file"
    )


def test_a_tokenizer_without_a_mask_token_is_refused(tiny_checkpoints: dict[str, Path], text: Path) -> None:
    assert refusal(lambda: windows_of(tiny_checkpoints["bert"], text), text) == (
        "the model's tokenizer has no mask token, so its masked-token loss cannot be measured\n"
        "  hint: give the checkpoint's tokenizer the mask token that its model was trained with"
    )


NO_HEAD_HINT = (
    "leave forgetting out for this model, or study a checkpoint that was saved with its head (sentence-embedding "
    "checkpoints are saved without)"
)


@pytest.mark.parametrize(("architecture", "lacks"), [("bert", "cls.predictions.bias"), ("roberta", "lm_head.bias")])
def test_an_encoder_saved_without_its_head_is_refused(
    tiny_checkpoints: dict[str, Path], architecture: str, lacks: str
) -> None:
    directory = tiny_checkpoints[architecture]
    assert refusal(lambda: load_language_head(directory, device="cpu"), directory) == (
        f"the checkpoint in DIR has no language-model head (it lacks {lacks}), so forgetting cannot be measured on it\n"
        f"  hint: {NO_HEAD_HINT}"
    )


def test_a_decoder_saved_without_its_own_head_is_refused(language_models: dict[str, Path], tmp_path: Path) -> None:
    tiny_base(language_models["llama"]).model.save_pretrained(tmp_path)  # as a classifier
    assert refusal(lambda: load_language_head(tmp_path, device="cpu"), tmp_path) == (
        "the checkpoint in DIR has no language-model head (it lacks lm_head.weight), so forgetting cannot be measured on "
        f"it\n  hint: {NO_HEAD_HINT}"
    )


def test_a_model_of_images_is_refused(tmp_path: Path) -> None:
    small = {name: SHAPE[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    ViTForImageClassification(ViTConfig(**small, intermediate_size=48, image_size=32)).save_pretrained(tmp_path)
    assert refusal(lambda: load_language_head(tmp_path, device="cpu"), tmp_path) == (
        "the checkpoint in DIR has no language-model head (vit is not a language model), so forgetting cannot be measured "
        f"on it\n  hint: {NO_HEAD_HINT}"
    )


@pytest.mark.parametrize(("name", "positions"), [("llama", 64), ("bert", 64), ("roberta", 63)])
def test_windows_longer_than_the_models_positions_are_refused(
    language_models: dict[str, Path], text: Path, name: str, positions: int
) -> None:
    checkpoint = language_models[name]
    model = tiny_base(checkpoint).model
    fitting = windows_of(checkpoint, text, length=positions)
    assert loss_of(model, checkpoint, fitting).nats_per_token > 0
    longer = windows_of(checkpoint, text, length=positions + 1)
    assert refusal(lambda: loss_of(model, checkpoint, longer), checkpoint) == (
        f"windows of {positions + 1} tokens are longer than the {positions} that {name} has positions for\n"
        f"  hint: use windows of at most {positions} tokens"
    )


def test_losses_on_different_windows_are_no_forgetting(language_models: dict[str, Path], text: Path) -> None:
    found = loss_of(tiny_base(language_models["llama"]).model, language_models["llama"], windows_of(
        language_models["llama"], text))  # fmt: skip
    with pytest.raises(AssertionError, match="losses on different windows"):
        Forgetting(found, replace(found, per_window=found.per_window[:-1]))
