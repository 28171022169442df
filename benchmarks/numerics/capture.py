"""Keep what the studies of this folder compute, so that compare.py can tell whether another version computes the same.

    PYTHONPATH=TREE/src python benchmarks/numerics/capture.py --out DIR [--only tiny] [--replay BEFORE]

The lorascope that is importable runs them, through its command line alone, and only files of its store and its results are
read: modules may move between two captures. One thread, fp32, the inline executor, gangs of a fixed size.

DIR/STUDY holds what is compared; DIR/work/STUDY holds inputs, store and results. `--replay BEFORE` starts from a copy of
BEFORE/work without the analysis: only the analysis is computed again, from the very same times, so that numbers which
derive from clocks can be compared too.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inputs import write_inputs

HERE = Path(__file__).resolve().parent
STUDIES = ("quickstart", "tiny", "served")
TABLES = ("measurements.parquet", "curves.parquet", "serving.parquet")
DOCUMENTS = ("analysis.json", "facts.json")
_WHERE = "import lorascope, torch; print(lorascope.__file__); print(torch.backends.cpu.get_cpu_capability())"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def capture(name: str, out: Path, *, replay: Path | None) -> dict[str, Any]:
    """Runs one study and keeps what it computed in out/name. What is said of the run: seconds, and the steps computed."""
    work = out / "work" / name
    for left in (work, out / name):  # of a capture that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    if replay is None:
        work.mkdir(parents=True)
        write_inputs(work)
        for path in (HERE / "studies").glob("*.yaml"):
            shutil.copy(path, work)
    else:
        shutil.copytree(replay / "work" / name, work)
        shutil.rmtree(work / "results")
        for path, record in records(work / "store"):
            if record["step"]["kind"] == "analysis":
                shutil.rmtree(path)
    started, used = time.monotonic(), processor_seconds()
    told = lorascope(
        "run", f"{name}.yaml", "--data", "data", "--executor", "inline", "--device", "cpu", "--json", cwd=work
    )
    seconds = {"seconds": time.monotonic() - started, "processor_seconds": processor_seconds() - used}
    keep(name, work, out / name)
    outcome = json.loads(told)
    counts = {key: len(outcome[key]) for key in ("computed", "cached")}
    return {**counts, **{key: round(value, 1) for key, value in seconds.items()}}


def processor_seconds() -> float:
    """What the commands have used so far, with the engines that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def lorascope(*arguments: str, cwd: Path) -> str:
    """What `lorascope ARGUMENTS` prints. Raises SystemExit with its last lines if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "lorascope", *arguments], cwd=cwd, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"lorascope {' '.join(arguments)}: status {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def environment() -> dict[str, str]:
    """This process's, with one thread, no hub, and none of lorascope's own variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORASCOPE_")}
    path = os.pathsep.join(str(Path(p).resolve()) for p in kept.get("PYTHONPATH", "").split(os.pathsep) if p)
    return {
        **kept,
        **dict.fromkeys(THREADS, "1"),
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def records(store: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every artifact of a store and its record, in the order of their ids."""
    for path in sorted((store / "artifacts").rglob("record.json"), key=lambda path: path.parent.name):
        yield path.parent, json.loads(path.read_text())


def keep(name: str, work: Path, kept: Path) -> None:
    """Copies what is compared: the tables and documents of the analysis, the report, the study, and every step's record."""
    kept.mkdir(parents=True)
    steps = []
    for path, record in records(work / "store"):
        literals = {key: record["step"][key] for key in ("kind", "version", "params", "deps")}
        checksums = {file: checksum(path / file, known) for file, known in record["sha256"].items()}
        steps.append({"id": record["id"], **literals, "result": record["result"], "sha256": checksums})
        if record["step"]["kind"] == "analysis":
            for table in TABLES:
                if (path / table).exists():
                    shutil.copy(path / table, kept)
            for document in DOCUMENTS:
                write_compressed(kept / f"{document}.gz", (path / document).read_text())
    write_compressed(kept / "steps.json.gz", json.dumps(steps, indent=0, sort_keys=True))
    shutil.copy(work / f"{name}.yaml", kept / "study.yaml")
    write_compressed(kept / "ANALYSIS_REPORT.md.gz", (work / "results" / name / "ANALYSIS_REPORT.md").read_text())


def checksum(path: Path, known: str) -> str:
    """The one in the record. PEFT writes a set of module names in the order of Python's random hashes: they are sorted."""
    if path.name != "adapter_config.json":
        return known
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write_compressed(path: Path, text: str) -> None:
    """The same text gives the same bytes."""
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def machine() -> dict[str, Any]:
    """What the last bits may depend on, and which source was run."""
    told = subprocess.run(
        [sys.executable, "-c", _WHERE],
        env=environment(), capture_output=True, text=True, check=True, cwd=HERE,
    ).stdout.split("\n")  # fmt: skip
    git = ["git", "-C", str(Path(told[0]).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True).stdout
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags"))]
    packages = (
        "torch",
        "transformers",
        "tokenizers",
        "peft",
        "numpy",
        "scipy",
        "pandas",
        "scikit-learn",
        "statsmodels",
        "optuna",
    )
    return {
        "commit": commit,
        "is_modified": bool(changed),
        "processor": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "capability": told[1],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; studies that were captured there are kept")
    parser.add_argument("--only", choices=STUDIES, action="append", help="this study (repeatable); default: all")
    parser.add_argument("--replay", type=Path, help="a capture: analyse its steps again instead of computing them")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    about = {**machine(), "is_replay": given.replay is not None, "studies": {}}
    if (out / "machine.json").exists():
        begun = json.loads((out / "machine.json").read_text())
        if {**begun, "studies": {}} != about:
            raise SystemExit(f"{out} holds another capture; name another folder")
        about = begun
    print(f"lorascope at {about['commit'][:7]}{' with changes' if about['is_modified'] else ''}", flush=True)
    for name in given.only or STUDIES:
        if name in about["studies"]:
            print(f"{name}: captured before", flush=True)
            continue
        about["studies"][name] = told = capture(name, out, replay=given.replay and given.replay.resolve())
        steps = f"{told['computed']} steps computed, {told['cached']} found"
        print(f"{name}: {steps}; {told['seconds']} s, processor {told['processor_seconds']} s", flush=True)
        (out / "machine.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
