"""lorascope: a laboratory that compares parameter-efficient fine-tuning methods.

    study = lorascope.load("study.yaml")
    outcome = lorascope.run(study)
    table = lorascope.results(study).measurements

The names come from `lorascope.api`, which is imported at first use, so that `import lorascope` costs nothing. Names of
subpackages (report, plan) cannot be among them: importing the subpackage would replace the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorascope.version import __version__

if TYPE_CHECKING:
    from lorascope.api import export, load, results, run, status, verify

__all__ = ["__version__", "export", "load", "results", "run", "status", "verify"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lorascope import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
