"""No request of any role, however odd, is answered with a 5xx: the API's schema is gone through.

Requests are drawn from the API's own document: each parameter and field is as the schema has it, or
something that nobody expects there. The draws are the same in every run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.plane import RUN_ID, SECRET, Plane, finished

REQUESTS = 4
"""Requests for each operation and role."""
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 10**400, 1e308, [], [[]], {}, {"a": {"b": []}}),
    *("", " ", "../x", "\u202e\x1b[2J", "é" * 300, "x" * 5000, "\x00"),
    *("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"),
)
KNOWN = (RUN_ID, "tiny", "20", "1", "node-1", "default", "01JNB0000000000000INCIDENT")
OPEN = ("/api/v1/openapi.json", "/api/v1/session")
"""Paths that answer without a token."""
METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        yield running


class Requests:
    """Draws requests of the API's document."""

    def __init__(self, document: dict[str, Any], rng: random.Random) -> None:
        self._document, self._rng = document, rng

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, methods in self._document["paths"].items():
            for method in METHODS:
                if method in methods:
                    yield method, path, methods[method]

    def draw(self, path: str, operation: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The path and the options of a request."""
        query: dict[str, str] = {}
        for each in operation.get("parameters", ()):
            value = self.value(each.get("schema", {}))
            text = value if isinstance(value, str) else str(value)[:500]
            if each["in"] == "path":
                known = self._rng.choice(KNOWN)
                text = known if self._rng.random() < 0.6 else text.replace("\x00", "") or "x"
                path = path.replace(f"{{{each['name']}}}", quote(text, safe=""))
            elif each["in"] == "query" and self._rng.random() < 0.7:
                query[each["name"]] = text
        options: dict[str, Any] = {"params": query}
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is not None:
            options["json"] = self.value(body.get("schema", {}))
        return path, options

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value that the schema has, or an odd one."""
        rng = self._rng
        if rng.random() < 0.15 or depth > 6:
            return rng.choice(ODD)
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self.value(self._document["components"]["schemas"][name], depth)
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                return self.value(rng.choice(schema[union]), depth + 1)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        return self._plain(schema, depth)

    def _plain(self, schema: dict[str, Any], depth: int) -> Any:
        rng = self._rng
        kind = schema.get("type")
        if kind == "object":
            wanted = schema.get("required", ())
            return {
                name: self.value(each, depth + 1)
                for name, each in schema.get("properties", {}).items()
                if name in wanted or rng.random() < 0.4
            }
        if kind == "array":
            items = schema.get("items", {})
            return [self.value(items, depth + 1) for _ in range(rng.randint(0, 3))]
        plain: dict[Any, tuple[Any, ...]] = {
            "integer": (0, 1, 7, schema.get("maximum", 50)),
            "number": (0.0, 0.5, 1e9),
            "boolean": (True, False),
            "string": ("x", "tiny", "2100-01-01T00:00:00Z", *KNOWN),
        }
        return rng.choice(plain.get(kind, ODD))


@pytest.mark.parametrize("role", ["nobody", "viewer", "operator", "admin"])
def test_no_request_is_answered_with_a_defect(plane: Plane, role: str) -> None:
    first = {"Authorization": f"Bearer {SECRET}"}
    with httpx.Client(base_url=plane.url, headers=first, trust_env=False) as http:
        document = http.get("/api/v1/openapi.json").json()
        headers = {}
        if role != "nobody":
            made = http.post("/api/v1/tokens", json={"name": f"odd-{role}", "role": role}).json()
            headers = {"Authorization": f"Bearer {made['secret']}"}
    requests = Requests(document, random.Random(f"requests of {role}"))
    tried, statuses = 0, set()
    with httpx.Client(base_url=plane.url, headers=headers, trust_env=False) as http:
        for method, path, operation in requests.operations():
            for _ in range(REQUESTS):
                where, options = requests.draw(path, operation)
                with http.stream(method, where, **options) as answer:
                    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                        answer.read()  # a stream goes on: its head must do
                    assert answer.status_code < 500, (method, where, options)
                tried += 1
                statuses.add(answer.status_code)
                if role == "nobody" and "/api/" in path and path not in OPEN:
                    assert answer.status_code == 401, (method, where)
    assert tried > 150
    assert statuses >= ({401} if role == "nobody" else {200, 404, 422})
