"""Which devices this machine has, found without loading torch into this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from lorascope.errors import EnvironmentProblem

# torch alone knows what it can use (builds without CUDA, hidden or partitioned devices), so it is asked, elsewhere.
_QUESTION = """
import json, torch
found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps(found or (["mps"] if torch.backends.mps.is_available() else [])))
"""


def find_devices() -> list[str]:
    """All CUDA devices, else ["mps"], else ["cpu"]. Takes seconds only where there may be an accelerator."""
    if not _may_have_accelerator():
        return ["cpu"]
    answer = subprocess.run([sys.executable, "-P", "-c", _QUESTION], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise EnvironmentProblem(
            f"torch cannot be asked for its devices: {(answer.stderr.strip().splitlines() or ['no output'])[-1]}",
            hint="Check the installation with `python -c 'import torch'`.",
        )
    return json.loads(answer.stdout.strip().splitlines()[-1]) or ["cpu"]


def check_devices(names: Sequence[str]) -> None:
    """Raises EnvironmentProblem for a device that this machine does not have, before any work is given to it."""
    if set(names) <= {"cpu"}:
        return
    there = list(dict.fromkeys([*find_devices(), "cpu"]))
    if "cuda:0" in there:
        there.append("cuda")
    for name in names:
        if name not in there:
            raise EnvironmentProblem(
                f"--device {name}: there is no such device on this machine", hint=f"there: {', '.join(there)}"
            )


def _may_have_accelerator() -> bool:
    if sys.platform == "darwin":
        return True
    traces = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
    return shutil.which("nvidia-smi") is not None or any(os.path.exists(trace) for trace in traces)
