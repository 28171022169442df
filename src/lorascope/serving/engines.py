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
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from lorascope.serving.adapters import find_misfit
from lorascope.serving.environment import engine_environment
from lorascope.serving.exchange import (
    EngineConfig,
    EngineFailure,
    EngineName,
    Ready,
    Request,
    ServedBatches,
    ServedRequests,
)

PROGRAMS = Path(__file__).parent / "programs"
_PROGRAM: Mapping[str, str] = {
    "vllm": "vllm_engine.py",
    "vllm-server": "vllm_server.py",
    "transformers": "transformers_engine.py",
}
_START_TIMEOUT_S = 900.0
_SERVE_TIMEOUT_S = 3600.0
_STOP_TIMEOUT_S = 10.0
_NUM_LOG_LINES = 12
_NUM_PORTS = 3


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
        self._notes: list[str] = []
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
        """This engine, once it is ready; whoever calls this has to call `end`. A server whose free port was taken before it
        had it starts again on another, a few times, which its notes and its log say. Raises EngineFailure."""
        self._refuse_misfits()
        num_left = _NUM_PORTS
        while True:
            num_left -= 1
            try:
                return self._start_once()
            except EngineFailure as failure:  # a free port may be taken before the engine has it
                if failure.kind != "port" or "port" in self._config.options or not num_left:
                    raise
                self._notes.append(f"started again on another port: {failure.message.splitlines()[0]}")

    def start_again(self, why: str) -> EngineProcess:
        """Like `start`, for one that has ended. why: added to its notes."""
        self.end()
        self._notes.append(why)
        return self.start()

    def _start_once(self) -> EngineProcess:
        try:
            self._process = self._launch()
            answer = self._read("ready", timeout_s=self._start_timeout_s)
            self._ready = Ready(**{**answer, "notes": (*self._notes, *answer["notes"])})
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
        served, wall_s = [], []
        for batch in batches:  # the time limit is a batch's, from its last arrival on: a load of many may take hours
            command = {"do": "serve", "batches": [[asdict(r) for r in batch]], "keep_outputs": keep_outputs}
            answer = self._ask(command, more_s=max((r.arrival_s for r in batch), default=0.0))
            served, wall_s = served + answer["served"], wall_s + answer["wall_s"]
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
        self._unread, self._ready = b"", None
        with self.log.open("ab" if self._notes else "wb") as stderr:
            # In a session of its own: Ctrl-C reaches us alone, and its whole group can be ended at once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=engine_environment(self._config, python=self._python),
                start_new_session=True,
            )
        assert process.stdin is not None and process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
        return process

    def _ask(self, command: Mapping[str, Any], expected: str = "served", *, more_s: float = 0.0) -> Any:
        deadline = time.monotonic() + self._serve_timeout_s + more_s
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


def _served(answer: Mapping[str, Any]) -> ServedRequests:
    output = answer["output"]
    return ServedRequests(
        **{**answer, "token_s": tuple(answer["token_s"]), "output": None if output is None else tuple(output)}
    )


def _hint(kind: str, log: Path) -> str:
    hints = {
        "adapter-rejected": "Serve it merged into its base: the arm `merged`.",
        "out-of-memory": "Lower the batch sizes, the lengths or the number of adapters, or take a smaller dtype.",
        "timeout": "If the machine is only slow, give it more time.",
    }
    return hints.get(kind, f"The whole log is {log}.")
