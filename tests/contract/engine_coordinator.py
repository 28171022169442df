"""A coordinator process for tests: `python engine_coordinator.py STORE STEPS.json EXECUTOR` runs the steps in the file.

Prints the outcome as one JSON line. Exit code 0: everything is there; 1: steps failed; 130: interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from lorascope import registry
from lorascope.engine.scheduler import execute
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store


def main() -> int:
    # A test runner started in the background ignores Ctrl-C, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    store = Store(Path(sys.argv[1]))
    steps = [Step.from_json(step) for step in json.loads(Path(sys.argv[2]).read_text())]
    executor = registry.resolve(registry.EXECUTORS, sys.argv[3])(store, devices=["cpu"])
    try:
        outcome = execute(steps, store=store, executor=executor, emit=lambda event: None, poll_s=0.05)
    except KeyboardInterrupt:
        return 130
    executor.close()
    names = {"done": outcome.done, "cached": outcome.cached, "failed": list(outcome.failed), "blocked": outcome.blocked}
    print(json.dumps(names), flush=True)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
