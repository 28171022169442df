"""A study as a person writes it wrong, and the text that person reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorascope.errors import StudyError
from lorascope.study.loading.load import load_study

GOOD = """\
name: small
question: Is it?
models: [minilm-l6]
tasks: [mrpc]
methods:
  - full
  - kind: lora
    rank: 8
"""


def error_of(text: str, tmp_path: Path, *overrides: str) -> str:
    """The error's text, with the file named as it would be from its own folder."""
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        load_study(path, overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{tmp_path}/", "")
