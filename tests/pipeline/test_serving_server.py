"""vLLM behind its HTTP server, for real: what a client gets equals what the files compute, and nothing is ever left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from small_served import PROMPTS, VLLM_PYTHON, greedy, save_adapters, save_small_llama, small_config

from lorascope.serving import engines
from lorascope.serving.engines import EngineProcess
from lorascope.serving.exchange import EngineConfig, EngineFailure, Request

NAMES = ("one", "two")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    assert VLLM_PYTHON.exists(), f"{VLLM_PYTHON} is not there: make it with `make serve-env`"
    folder = tmp_path_factory.mktemp("server")
    base = save_small_llama(folder / "base")
    return small_config(base, save_adapters(base, folder, NAMES))


@pytest.fixture(scope="module")
def server(config: EngineConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with EngineProcess("vllm-server", config, python=VLLM_PYTHON, directory=tmp_path_factory.mktemp("log")) as engine:
        yield engine


def mixed(*, arrival_s: float = 0.0) -> list[Request]:
    return [
        Request(index, prompt, NAMES[index % 2], output_tokens=8, arrival_s=index * arrival_s)
        for index, prompt in enumerate(PROMPTS)
    ]


def test_a_mixed_batch_over_http_equals_each_adapter_alone(config, server):
    served = server.serve([mixed()], keep_outputs=True).requests
    for place, name in enumerate(NAMES):
        expected = greedy(config, name, PROMPTS[place::2], 8)
        assert [one.output for one in served[place::2]] == [tuple(row) for row in expected]


def test_times_are_the_clients_and_grow_token_by_token(server):
    batches = server.serve([mixed(), mixed(arrival_s=0.2)])
    for one in batches.requests:
        assert len(one.token_s) == 8 and list(one.token_s) == sorted(one.token_s)
        assert one.arrival_s <= one.sent_s < one.first_s < one.last_s, "streamed: the first token is not the last"
        assert one.sent_s - one.arrival_s < 0.2 and one.output is None
    assert batches.wall_s[1] > 1.0 > batches.wall_s[1] - batches.requests[-1].sent_s


def test_no_more_requests_are_in_flight_than_the_engine_takes(config, server):
    many = [Request(index, PROMPTS[0], "one", output_tokens=8) for index in range(config.max_batch + 2)]
    served = server.serve([many]).requests
    last = sorted(one.last_s for one in served)
    assert sorted(one.sent_s for one in served)[config.max_batch] >= last[0]


def test_memory_is_that_of_all_processes_of_the_server(server):
    (cli,) = psutil.Process(server.pid).children()
    tree = [cli, *cli.children(recursive=True)]
    memory = server.memory()
    assert len(tree) > 1 and memory["process_bytes"] == pytest.approx(sum(p.memory_info().rss for p in tree), rel=0.1)
    assert "weights_bytes" not in memory and any("HTTP" in note for note in server.ready.notes)


def test_a_server_that_dies_is_a_failure_and_leaves_nothing(server):
    """The last test of this server."""
    tree = psutil.Process(server.pid).children(recursive=True)
    next(p for p in tree if "vllm_cli.py" in " ".join(p.cmdline())).kill()
    with pytest.raises(EngineFailure, match="it ended with SIGKILL") as caught:
        server.serve([mixed()])
    assert caught.value.kind == "died"
    wait_for(lambda: not any(is_running(p) for p in tree))


def test_a_port_that_is_taken_is_a_failure_that_names_it(config, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        asked = EngineConfig(**{**vars(config), "options": {"port": port}})
        with pytest.raises(EngineFailure, match=f"port {port} of 127.0.0.1 is taken") as caught:
            EngineProcess("vllm-server", asked, python=VLLM_PYTHON, directory=tmp_path).start()
    assert caught.value.kind == "port"


class Other(BaseHTTPRequestHandler):
    """Another program's server, which also says that it is well."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_port_taken_before_the_server_has_it_is_replaced(config, tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        program, is_second = tmp_path / "program.py", tmp_path / "second"
        program.write_text(f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(engines.PROGRAMS)!r})
import vllm_server
import wire

second = Path({str(is_second)!r})
if not second.exists():
    second.touch()
    vllm_server.free_port = lambda wanted: {other.server_port}
sys.exit(wire.run_program(vllm_server.VLLMServer, has_children=True))
""")
        monkeypatch.setitem(engines._PROGRAM, "vllm-server", str(program))
        with EngineProcess("vllm-server", config, python=VLLM_PYTHON, directory=tmp_path / "log") as engine:
            assert engine.ready.settings["url"] != f"http://127.0.0.1:{other.server_port}"
            (note,) = [note for note in engine.ready.notes if "another port" in note]
            assert note.startswith("started again on another port: vllm-server: the server did not start")
            assert len(engine.serve([mixed()]).requests) == len(PROMPTS)
        assert "address already in use" in engine.log.read_text().lower()
        other.shutdown()


def test_the_server_ends_with_whoever_started_it_however_that_ends(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    program = engines.PROGRAMS / "vllm_server.py"
    start = f"""
import os, subprocess, time
command = [{str(VLLM_PYTHON)!r}, {str(program)!r}, "--config", {str(tmp_path / "config.json")!r}, "--parent", str(os.getpid())]
subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", start], stderr=subprocess.DEVNULL)

    def tree() -> list[psutil.Process]:
        found = psutil.Process(parent.pid).children(recursive=True)
        return found if any("vllm_cli.py" in " ".join(p.cmdline()) for p in found) else []

    started = wait_for(tree)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(is_running(p) for p in started))


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(found: Callable, *, timeout_s: float = 120.0):
    deadline = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return answer
