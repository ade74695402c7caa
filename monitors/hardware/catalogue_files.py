"""Reads the rows that come with babysit: `monitors/hardware/rules/*.yaml`, part of the package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from monitors.hardware.catalogue import Catalogue, Row, RowFile


@cache
def builtin_catalogue() -> Catalogue:
    """The rows that come with babysit.

    Raises:
        RuntimeError: The package holds no rows, or broken ones: it was built or copied badly.
    """
    rows: list[Row] = []
    folder = files("monitors").joinpath("hardware", "rules")
    for resource in sorted(folder.iterdir(), key=lambda each: each.name):
        if resource.name.endswith(".yaml"):
            try:
                raw = YAML(typ="safe").load(resource.read_text(encoding="utf-8"))
                rows += RowFile.model_validate(raw).rows
            except (ValueError, YAMLError) as error:
                raise RuntimeError(f"monitors/hardware/rules/{resource.name}: {error}") from error
    if not rows:
        raise RuntimeError("the package holds no rows (monitors/hardware/rules/*.yaml)")
    return Catalogue(rows)
