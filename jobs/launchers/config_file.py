"""Reads the file that `accelerate config` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from jobs.launchers.options import LauncherError


def read_configuration(
    name: str | None, directory: Path, environment: Mapping[str, str]
) -> Mapping[str, Any]:
    """The content of a configuration; empty where none is named and the default one is absent.

    Args:
        name: The file; None: the default one, whose place HF_HOME and XDG_CACHE_HOME decide.
        directory: What a relative name is relative to.
        environment: Of the shell that submits.

    Raises:
        LauncherError: The file cannot be read, or is not a mapping.
    """
    home = Path(environment.get("HOME", "~")).expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME", home / ".cache"))
    default = Path(environment.get("HF_HOME", cache / "huggingface"), "accelerate")
    path = default / "default_config.yaml" if name is None else directory / name
    if name is None and not path.is_file():
        return {}
    try:
        found = YAML(typ="safe", pure=True).load(path.read_text())
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise LauncherError(f"accelerate launch: {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise LauncherError(f"accelerate launch: {path}: expected a mapping")
    return found
