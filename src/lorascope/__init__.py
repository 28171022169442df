"""lorascope: a laboratory that compares parameter-efficient fine-tuning methods.

    study = lorascope.load("study.yaml")
    outcome = lorascope.run(study)
    table = lorascope.results(study).scores

The names come from `lorascope.api`, which is imported at first use, so that `import lorascope` costs nothing. Names of
subpackages (report, plan) cannot be among them: importing the subpackage would replace the function. `lorascope.api` has
those too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorascope.version import __version__

if TYPE_CHECKING:
    from lorascope.api import (
        Outcome,
        Reanalysed,
        Results,
        Workers,
        analyse,
        calibrate,
        export,
        find_run,
        graph,
        load,
        pack,
        repair,
        results,
        run,
        status,
        verify,
        watch,
    )

__all__ = [
    "Outcome", "Reanalysed", "Results", "Workers", "__version__", "analyse", "calibrate", "export", "find_run", "graph",
    "load", "pack", "repair", "results", "run", "status", "verify", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lorascope import api

        return getattr(api, name)
    if name == "api":
        import importlib

        return importlib.import_module("lorascope.api")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "api"})
