"""The JSON Schema of the run spec, for editors and for checks outside of babysit."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jobs.spec import RunSpec

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"


@cache
def run_schema() -> dict[str, Any]:
    """The schema as JSON data. Do not change the result: it is shared."""
    return {"$schema": SCHEMA_ID, **RunSpec.model_json_schema()}


def schema_text() -> str:
    """The text that `babysit schema` prints and `docs/run.schema.json` holds."""
    return json.dumps(run_schema(), indent=2) + "\n"
