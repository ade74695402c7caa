"""A small client of the API server, for the test bed: objects are the JSON that the server speaks.

The product has the official client; the bed has its own, so that neither hides a mistake of the
other.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

Object = dict[str, Any]

MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused.

    Attributes:
        status: HTTP status.
        reason: `NotFound`, `AlreadyExists`, `Conflict`, …
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason = status, reason


class Api:
    """Requests with one identity. Safe to use from several threads."""

    def __init__(self, url: str, ca: Path, token: str) -> None:
        self.url, self.ca, self.token = url, ca, token
        self._client = httpx.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=str(ca)),
            headers={"Authorization": f"Bearer {token}", "User-Agent": "babysit-tests"},
            timeout=30.0,
            limits=httpx.Limits(max_connections=200, max_keepalive_connections=50),
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections; watches end."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        **query: Any,
    ) -> Object:
        """One request; the object that the server answers with. ApiError: it refused."""
        response = self._client.request(
            method,
            path,
            params=query,
            content=None if body is None else json.dumps(body),
            headers={"Content-Type": kind},
        )
        if response.is_error:
            raise _error(response)
        found: Object = response.json()
        return found

    def text(self, path: str, **query: Any) -> str:
        """The body of an answer that is not an object, such as `/healthz` or a log."""
        response = self._client.get(path, params=query)
        if response.is_error:
            raise _error(response)
        return response.text

    def get(self, path: str, **query: Any) -> Object:
        """One object, or a list."""
        return self.request("GET", path, **query)

    def find(self, path: str) -> Object | None:
        """One object; None: there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: Object, kind: str = MERGE) -> Object:
        """Patch an object."""
        return self.request("PATCH", path, body, kind=kind)

    def put(self, path: str, body: Object) -> Object:
        """Replace an object."""
        return self.request("PUT", path, body)

    def delete(self, path: str, *, grace: int | None = None, uid: str | None = None) -> None:
        """Delete an object, if it is there (and is the one with this uid)."""
        options: Object = {"propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", path, options)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise

    def watch(self, path: str, **query: Any) -> Iterator[tuple[str, Object]]:
        """Every object of a collection as it is now (`ADDED`), then its changes, until the server
        ends the stream (after a minute).
        """
        found = self.get(path, **query)
        for item in found["items"]:
            yield "ADDED", item
        version = found["metadata"]["resourceVersion"]
        parameters = {**query, "watch": "true", "resourceVersion": version, "timeoutSeconds": 60}
        with self._client.stream("GET", path, params=parameters, timeout=None) as response:
            if response.is_error:
                response.read()
                raise _error(response)
            for line in response.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(status.get("code", 0), status.get("reason", ""), str(status))
                yield event["type"], event["object"]


def _error(response: httpx.Response) -> ApiError:
    try:
        status = response.json()
        return ApiError(response.status_code, status.get("reason", ""), status.get("message", ""))
    except ValueError:
        return ApiError(response.status_code, "", response.text[:500])
