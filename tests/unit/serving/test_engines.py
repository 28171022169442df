"""Engine processes: what the transformers engine serves equals direct computation, and no failure is quiet or hangs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from lorascope.errors import EnvironmentProblem
from lorascope.serving import engines
from lorascope.serving.engines import EngineProcess
from lorascope.serving.environment import check_engine, visible_device
from lorascope.serving.exchange import EngineConfig, EngineFailure, Request

PYTHON = Path(sys.executable)
ADAPTERS = ("first", "second")
PROMPTS = ([4, 5, 6], [7, 8], [9, 10, 11, 12, 13], [14, 4], [5, 9, 9, 4])


def save_adapters(base: Path, directory: Path, workload: str) -> dict[str, Path]:
    """Two adapters with random A, B and, for classification, heads of their own."""
    is_generation = workload == "generation"
    factory = AutoModelForCausalLM if is_generation else AutoModelForSequenceClassification
    saved = {}
    for seed, name in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        model = get_peft_model(
            factory.from_pretrained(base),
            LoraConfig(
                r=4,
                lora_alpha=8,
                target_modules=["q_proj", "v_proj", "up_proj"],
                task_type="CAUSAL_LM" if is_generation else "SEQ_CLS",
                modules_to_save=None if is_generation else ["score"],
            ),
        )
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name or "modules_to_save" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(directory / name)
        saved[name] = directory / name
    return saved


@pytest.fixture(scope="module")
def generation(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    base = tiny_checkpoints["llama"]
    adapters = save_adapters(base, tmp_path_factory.mktemp("generation"), "generation")
    return EngineConfig(
        "generation", base, adapters, "float32", "cpu", max_length=60, max_batch=4, max_rank=4, threads=1
    )


@pytest.fixture(scope="module")
def classification(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    directory = tmp_path_factory.mktemp("classification")
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoints["llama"], num_labels=3)
    model.save_pretrained(directory / "base")
    adapters = save_adapters(directory / "base", directory, "classification")
    return EngineConfig(
        "classification", directory / "base", adapters, "float32", "cpu", max_length=60, max_batch=4, max_rank=4, threads=1
    )  # fmt: skip


def start(config: EngineConfig, directory: Path, **limits: float) -> EngineProcess:
    return EngineProcess("transformers", config, python=PYTHON, directory=directory, **limits)


@pytest.fixture(scope="module")
def generating(generation: EngineConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with start(generation, tmp_path_factory.mktemp("generating")) as engine:
        yield engine


@pytest.fixture(scope="module")
def classifying(classification: EngineConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with start(classification, tmp_path_factory.mktemp("classifying")) as engine:
        yield engine


def mixed_requests(output_tokens: Sequence[int]) -> list[Request]:
    """Every prompt with a base, first or second adapter in turn, so that every batch is a mixture."""
    arms = (None, *ADAPTERS)
    return [
        Request(index, prompt, arms[index % 3], output_tokens=count)
        for index, (prompt, count) in enumerate(zip(PROMPTS, output_tokens, strict=True))
    ]


def direct_model(config: EngineConfig, adapter: str | None) -> torch.nn.Module:
    is_generation = config.workload == "generation"
    factory = AutoModelForCausalLM if is_generation else AutoModelForSequenceClassification
    model = factory.from_pretrained(config.model)
    return (model if adapter is None else PeftModel.from_pretrained(model, config.adapters[adapter])).eval()


@torch.no_grad()
def greedy_tokens(model: torch.nn.Module, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """One prompt alone, without a cache: the largest logit, `count` times."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_tokens_of_a_mixed_batch_equal_those_of_each_adapter_alone(generation, generating):
    requests = mixed_requests([6, 6, 6, 6, 6])
    served = generating.serve([requests], keep_outputs=True).requests
    outputs = [one.output for one in served]
    assert outputs == [greedy_tokens(direct_model(generation, r.adapter), r.prompt, 6) for r in requests]
    assert outputs != [greedy_tokens(direct_model(generation, None), r.prompt, 6) for r in requests]


def test_tokens_of_a_batch_of_one_adapter_equal_its_direct_computation(generation, generating):
    for adapter in (*ADAPTERS, None, ADAPTERS[0]):  # switching there and back
        requests = [Request(index, prompt, adapter, output_tokens=4) for index, prompt in enumerate(PROMPTS)]
        outputs = [one.output for one in generating.serve([requests], keep_outputs=True).requests]
        model = direct_model(generation, adapter)
        assert outputs == [greedy_tokens(model, prompt, 4) for prompt in PROMPTS]


@torch.no_grad()
def test_probabilities_of_a_mixed_batch_equal_those_of_each_adapter_alone(classification, classifying):
    requests = mixed_requests([0] * 5)
    served = classifying.serve([requests], keep_outputs=True).requests
    assert classifying.ready.head == "adapter"
    for request, one in zip(requests, served, strict=True):
        logits = direct_model(classification, request.adapter)(input_ids=torch.tensor([request.prompt])).logits[0]
        assert one.output == pytest.approx(torch.softmax(logits, -1).tolist(), abs=1e-5)
    first, second = (served[index].output for index in (1, 2))
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 0.01


@torch.no_grad()
def test_a_prompt_that_ends_with_the_padding_token_is_read_to_its_end(classification, classifying):
    prompts = ([5, 6, 0], [5, 6], [7, 8, 9, 10])  # 0 is the checkpoint's pad token
    requests = [Request(index, prompt, "first") for index, prompt in enumerate(prompts)]
    served = classifying.serve([requests], keep_outputs=True).requests
    model = direct_model(classification, "first")
    model.config.pad_token_id = 15
    for prompt, one in zip(prompts, served, strict=True):
        logits = model(input_ids=torch.tensor([prompt])).logits[0]
        assert one.output == pytest.approx(torch.softmax(logits, -1).tolist(), abs=1e-5)


def test_every_request_gets_exactly_its_tokens_at_times_that_only_grow(generating):
    counts = [1, 5, 3, 7, 2]
    batches = generating.serve([mixed_requests(counts), []], keep_outputs=True)
    assert [len(one.output) for one in batches.requests] == counts
    for one, count in zip(batches.requests, counts, strict=True):
        assert len(one.token_s) == count and list(one.token_s) == sorted(one.token_s)
        assert 0 < one.first_s == one.token_s[0] and one.token_s[-1] == one.last_s <= batches.wall_s[0]
    # Four at once at most: the fifth starts when the four have ended.
    assert batches.requests[4].first_s > max(one.last_s for one in batches.requests[:4])


def test_outputs_are_left_away_unless_asked_for(generating):
    (one,) = generating.serve([[Request(7, [4, 5], "first", output_tokens=2)]]).requests
    assert (one.id, one.output, len(one.token_s)) == (7, None, 2)


def test_nothing_is_served_before_it_arrives(generating):
    arrivals = (0.0, 0.9, 0.5)
    requests = [
        Request(index, PROMPTS[index], "second", output_tokens=2, arrival_s=arrival)
        for index, arrival in enumerate(arrivals)
    ]
    batches = generating.serve([requests])
    for one, arrival in zip(batches.requests, arrivals, strict=True):
        assert one.arrival_s == arrival < one.first_s
    assert batches.requests[2].first_s < 0.9 < batches.wall_s[0]


def test_a_seed_gives_the_same_sample_alone_and_in_a_batch(generating):
    def request(index: int, seed: int) -> Request:
        return Request(index, PROMPTS[0], "first", output_tokens=8, temperature=2.0, seed=seed)

    (alone,) = generating.serve([[request(0, 5)]], keep_outputs=True).requests
    together = generating.serve([[request(0, 6), request(1, 5), request(2, 7)]], keep_outputs=True).requests
    assert together[1].output == alone.output
    assert len({one.output for one in together}) == 3


def test_samples_follow_the_softmax_at_the_temperature_asked_for(generation, generating):
    temperature, num_samples = 1.5, 2000
    requests = [
        Request(seed, PROMPTS[0], "first", output_tokens=1, temperature=temperature, seed=seed)
        for seed in range(num_samples)
    ]
    drawn = [one.output[0] for one in generating.serve([requests], keep_outputs=True).requests]
    with torch.no_grad():
        logits = direct_model(generation, "first")(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1)
    observed = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / num_samples
    assert (observed - expected).abs().max() < 4 * 0.5 / num_samples**0.5


def test_memory_counts_the_weights_and_both_adapters(generation, generating):
    memory = generating.memory()
    base = LlamaForCausalLM.from_pretrained(generation.model)
    assert memory["weights_bytes"] == sum(parameter.nbytes for parameter in base.parameters())
    files = [load_file(path / "adapter_model.safetensors") for path in generation.adapters.values()]
    assert memory["adapter_bytes"] == sum(tensor.nbytes for file in files for tensor in file.values())
    assert memory["peak_process_bytes"] >= memory["process_bytes"] > 50_000_000


def test_an_adapter_can_be_unloaded_and_loaded_again(generation, generating):
    request = Request(0, PROMPTS[2], "second", output_tokens=4)
    before = generating.serve([[request]], keep_outputs=True).requests[0].output
    assert generating.unload("second") > 0 and generating.load("second") > 0
    assert generating.serve([[request]], keep_outputs=True).requests[0].output == before


def test_an_engine_that_dies_is_a_failure_with_its_last_words(generation, tmp_path):
    with start(generation, tmp_path) as engine:
        engine.log.open("a").write("the last words\n")
        os.kill(engine.pid, 9)
        with pytest.raises(EngineFailure, match=r"died \(SIGKILL\)[\s\S]*the last words") as caught:
            engine.serve([[Request(0, [4], output_tokens=1)]])
    assert (caught.value.kind, caught.value.log) == ("died", tmp_path / "engine.log")


def test_an_engine_that_is_slow_to_start_or_to_serve_is_ended(generation, tmp_path):
    with (
        pytest.raises(EngineFailure, match="gave no answer in 0 s") as caught,
        start(generation, tmp_path, start_timeout_s=0.1),
    ):
        pass
    assert caught.value.kind == "timeout"
    long = [Request(index, [4, 5], "first", output_tokens=50) for index in range(200)]
    with start(generation, tmp_path, serve_timeout_s=0.5) as engine:
        pid = engine.pid
        with pytest.raises(EngineFailure, match="gave no answer") as caught:
            engine.serve([long])
        assert caught.value.kind == "timeout" and not is_alive(pid)


def test_the_engine_ends_with_its_block_even_when_that_raises(generation, tmp_path):
    with pytest.raises(KeyboardInterrupt), start(replace(generation, adapters={}), tmp_path) as engine:
        pid = engine.pid
        raise KeyboardInterrupt
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def refusal(config: EngineConfig, directory: Path, engine: str = "transformers") -> EngineFailure:
    with pytest.raises(EngineFailure) as caught, EngineProcess(engine, config, python=PYTHON, directory=directory):
        pass
    return caught.value


def test_an_option_that_the_engine_does_not_know_is_refused_by_name(generation, tmp_path):
    failure = refusal(replace(generation, adapters={}, options={"specialise": True}), tmp_path)
    assert failure.kind == "option" and "does not know the option `specialise`" in failure.message


def test_a_checkpoint_that_is_none_is_a_failure_of_the_model(generation, tmp_path):
    (tmp_path / "model").mkdir()
    failure = refusal(replace(generation, model=tmp_path / "model", adapters={}), tmp_path)
    assert failure.kind == "model" and str(tmp_path / "model") in failure.message


def test_answers_that_are_no_protocol_are_a_failure(generation, tmp_path):
    babbler = tmp_path / "python"
    babbler.write_text("#!/bin/sh\necho hello\nsleep 60\n")
    babbler.chmod(0o755)
    with pytest.raises(EngineFailure, match="answered nonsense: b'hello'"):
        EngineProcess("transformers", generation, python=babbler, directory=tmp_path).__enter__()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"use_qalora": True}, "it is QA-LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised with pissa_niter_4, which changed its base"),
        ({"peft_type": "LOHA"}, "of PEFT's kind LOHA"),
        ({"r": 8}, "its rank 8 is over the engine's max_rank 4"),
        ({"rank_pattern": {"q_proj": 16}}, "its rank 16 is over the engine's max_rank 4"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_is_refused_before_it_starts(generation, tmp_path, change, words):
    adapter = tmp_path / "adapter"
    shutil.copytree(generation.adapters["first"], adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | change))
    failure = refusal(replace(generation, adapters={"odd": adapter}), tmp_path, "vllm")
    assert failure.kind == "adapter-rejected" and failure.message.startswith("vllm cannot serve adapter `odd`: ")
    assert words in failure.message
    assert "merged" in str(failure.hint) and not (tmp_path / "engine.log").exists()


def test_an_adapter_of_another_base_is_refused_with_both_sizes(generation, tmp_path):
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=48, vocab_size=16)).save_pretrained(tmp_path / "other")
    failure = refusal(replace(generation, model=tmp_path / "other"), tmp_path)
    assert failure.kind == "adapter-rejected"
    assert "it was made for another base: its model.layers.0." in failure.message
    assert "has 32 inputs, this base's weight is (48, 48)" in failure.message


def test_a_failure_keeps_its_kind_between_processes():
    failure = pickle.loads(pickle.dumps(EngineFailure("no", kind="died", log=Path("a.log"), hint="look")))
    assert (failure.message, failure.kind, failure.log, failure.hint) == ("no", "died", Path("a.log"), "look")


def test_a_missing_engine_is_told_with_the_command_that_makes_it(tmp_path):
    assert check_engine("transformers", PYTHON).keys() >= {"python", "torch", "transformers", "peft"}
    with pytest.raises(EnvironmentProblem, match=r"needs vllm[\s\S]*make serve-env"):
        check_engine("vllm", PYTHON)
    with pytest.raises(EnvironmentProblem, match="cannot be run"):
        check_engine("vllm", tmp_path / "python")


def test_a_device_is_looked_up_among_the_visible_ones(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_device("cuda:1") == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert visible_device("cuda:1") == "6"


@pytest.mark.parametrize(("options", "num_starts"), [({}, 3), ({"port": 8000}, 1)])
def test_a_taken_port_is_tried_again_unless_it_was_asked_for(generation, tmp_path, monkeypatch, options, num_starts):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "print('a start', file=sys.stderr)\n"
        """print('{"error": {"kind": "port", "text": "address already in use"}}', flush=True)\n"""
    )
    monkeypatch.setitem(engines._PROGRAM, "transformers", str(program))
    with pytest.raises(EngineFailure, match="address already in use") as caught:
        start(replace(generation, options=options), tmp_path / "engine").start()
    assert caught.value.kind == "port"
    assert (tmp_path / "engine" / "engine.log").read_text().count("a start") == num_starts


def test_one_that_was_killed_is_started_again_in_its_place_and_says_so(generation, tmp_path):
    with start(generation, tmp_path) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineFailure, match="SIGKILL"):
            engine.memory()
        engine.start_again("it ended while it waited")
        assert engine.ready.notes[0] == "it ended while it waited"
        assert len(engine.serve([mixed_requests([2] * len(PROMPTS))]).requests) == len(PROMPTS)
        assert engine.log.exists()
