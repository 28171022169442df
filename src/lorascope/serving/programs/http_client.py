"""A client of vLLM's HTTP server: requests sent when they are due, times taken when their tokens arrive here.

One connection a request in flight, answers streamed, so the time to the first token and between tokens is what a user
waits, with the network stack and the server's own work in it.
"""

# pyright: reportMissingImports=false
# (aiohttp comes with vLLM)

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import wire

BASE = "base"
"""What the server calls the model without an adapter."""


class Client:
    """workload: "generation" or "classification". max_batch: requests in flight at most, the others wait here."""

    def __init__(self, url: str, *, workload: str, max_batch: int) -> None:
        self._url, self._workload, self._max_batch = url, workload, max_batch
        self._runner = asyncio.Runner()
        self._session = self._runner.run(_open_session())

    def serve(self, requests: Sequence[dict[str, Any]], keep_outputs: bool) -> tuple[list[dict[str, Any]], float]:
        """Like `wire.Engine.serve`. Raises EngineError for what the server refuses, aiohttp.ClientError if it is gone."""
        return self._runner.run(self._serve(requests, keep_outputs))

    def close(self) -> None:
        self._runner.run(self._session.close())
        self._runner.close()

    async def _serve(
        self, requests: Sequence[dict[str, Any]], keep_outputs: bool
    ) -> tuple[list[dict[str, Any]], float]:
        places, start = asyncio.Semaphore(self._max_batch), wire.clock()
        answer = self._generate if self._workload == "generation" else self._classify

        async def served(request: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(max(0.0, request["arrival_s"] - (wire.clock() - start)))
            async with places:
                sent_s = wire.clock() - start
                token_s, output = await answer(request, start)
            return wire.served_request(request, token_s, output if keep_outputs else None, sent_s=sent_s)

        answers = await asyncio.gather(*map(served, requests))
        return answers, wire.clock() - start

    async def _generate(self, request: dict[str, Any], start: float) -> tuple[list[float], list[int]]:
        body = {
            "model": request["adapter"] or BASE,
            "prompt": request["prompt"],
            "max_tokens": request["output_tokens"],
            "ignore_eos": True,
            "temperature": request["temperature"],
            "seed": request["seed"],
            "stream": True,
            "return_token_ids": True,  # an event may hold several tokens, or none that is text yet
        }
        token_s: list[float] = []
        tokens: list[int] = []
        async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
            await _refuse_failure(response)
            async for event in _events(response):
                now_s = wire.clock() - start
                for choice in event.get("choices", ()):
                    news = choice.get("token_ids") or ()
                    token_s += [now_s] * len(news)
                    tokens += news
        if len(tokens) != request["output_tokens"]:
            text = f"request {request['id']} got {len(tokens)} tokens for {request['output_tokens']}"
            raise wire.EngineError("engine", text)
        return token_s, tokens

    async def _classify(self, request: dict[str, Any], start: float) -> tuple[list[float], list[float]]:
        body = {
            "model": request["adapter"] or BASE, "input": request["prompt"], "task": "classify", "use_activation": False,
            "add_special_tokens": False,
        }  # fmt: skip
        async with self._session.post(f"{self._url}/pooling", json=body) as response:
            await _refuse_failure(response)
            answer = await response.json()
        now_s = wire.clock() - start
        return [now_s], wire.softmax(answer["data"][0]["data"])


async def _open_session() -> aiohttp.ClientSession:
    """Without a limit to connections or time: who waits for what is the load's to say."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**20
    )


async def _refuse_failure(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        text = (await response.text())[:1000]
        raise wire.EngineError("engine", f"the server answered {response.status} {response.reason}: {text}")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON of server-sent events. Read to its very end: only then can the connection carry the next request."""
    async for line in response.content:
        content = line.removeprefix(b"data: ").strip()
        if not line.startswith(b"data: ") or content == b"[DONE]":
            continue
        event = json.loads(content)
        if "error" in event:
            raise wire.EngineError("engine", f"the server broke off: {event['error']}")
        yield event
