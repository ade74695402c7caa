"""Grafana's HTTP API: the folder and the dashboards of babysit in it.

The only module that imports grafana_client. Dashboards are known by their uid. Each is written
with the version that was read just before, so that what a person saves in between is refused by
Grafana (412) rather than lost. Requests are not repeated: a push can be run again.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
from grafana_client import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException, TokenAuth

from orchestrator.dashboards.board import text_of
from orchestrator.errors import (
    BabysitError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
)

FOLDER_UID, FOLDER_TITLE = "babysit", "babysit"
TIMEOUT_SECONDS = 10.0
_OF_GRAFANA = ("id", "version", "iteration")
"""Fields that Grafana adds to a dashboard."""
_REASONS = {
    "version-mismatch": "somebody has saved it since it was read: push again",
    "name-exists": "the folder has another dashboard of this title: rename or delete that one",
    "plugin-dashboard": "it belongs to a plugin: it cannot be changed",
}
"""By the `status` of a 412 (HTTP API of dashboards)."""


class GrafanaUnreachableError(BabysitError):
    """Grafana did not answer, or failed over the request."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pushed:
    """The outcome of a push of one dashboard."""

    uid: str
    result: Literal["created", "updated", "unchanged"]
    url: str
    """Path below the address of Grafana."""


class Grafana:
    """A Grafana, as a client with a token of a service account sees it."""

    def __init__(self, url: str, token: str) -> None:
        """Connect to nothing yet.

        Raises:
            InvalidError: The URL is not one.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidError(
                f"BABYSIT_GRAFANA_URL={url}: expected a URL such as https://grafana.example.org"
            )
        self._url = url
        self._api = GrafanaApi.from_url(url, credential=TokenAuth(token), timeout=TIMEOUT_SECONDS)

    def current(self, uid: str) -> dict[str, Any] | None:
        """A dashboard as Grafana has it; None: there is none of this uid."""
        try:
            answer = self._call("read the dashboard", self._api.dashboard.get_dashboard, uid)
        except NotFoundError:
            return None
        found: dict[str, Any] = answer["dashboard"]
        return found

    def diff(self, body: dict[str, Any]) -> str:
        """Changes that a push of a dashboard would make, as a unified diff; empty: none."""
        uid, there = str(body["uid"]), self.current(str(body["uid"]))
        old = "" if there is None else text_of(_ours(there))
        lines = difflib.unified_diff(
            old.splitlines(keepends=True),
            text_of(body).splitlines(keepends=True),
            f"{self._url}/d/{uid}" if there else "/dev/null",
            f"{uid}.json",
        )
        return "".join(lines)

    def push(self, body: dict[str, Any]) -> Pushed:
        """Create or replace a dashboard in the folder of babysit, if it differs.

        Raises:
            ConflictError: Grafana refuses the change, for example over an edit in between.
            PermissionDeniedError: The token is not valid, or may not do it.
            NotFoundError: There is no such API at the URL.
            GrafanaUnreachableError: Grafana does not answer, or fails.
        """
        uid, there = str(body["uid"]), self.current(str(body["uid"]))
        if there is not None and text_of(_ours(there)) == text_of(body):
            return Pushed(uid, "unchanged", f"/d/{uid}")
        self._ensure_folder()
        version = {} if there is None else {"id": there["id"], "version": there["version"]}
        message = {
            "dashboard": {**body, **version},
            "folderUid": FOLDER_UID,
            "message": "babysit grafana push",
            "overwrite": False,
        }
        answer = self._call("save the dashboard", self._api.dashboard.update_dashboard, message)
        return Pushed(uid, "created" if there is None else "updated", str(answer["url"]))

    def _ensure_folder(self) -> None:
        try:
            self._call("read the folder", self._api.folder.get_folder, FOLDER_UID)
        except NotFoundError:
            try:
                self._call(
                    "create the folder", self._api.folder.create_folder, FOLDER_TITLE, FOLDER_UID
                )
            except ConflictError:  # another push was first; or the name is taken
                self._call("read the folder", self._api.folder.get_folder, FOLDER_UID)

    def _call(self, aim: str, method: Any, *arguments: Any) -> Any:
        try:
            answer = method(*arguments)
        except GrafanaClientError as error:
            raise self._refusal(aim, error) from error
        except (GrafanaException, requests.RequestException, ValueError) as error:
            raise GrafanaUnreachableError(
                f"cannot {aim}: Grafana at {self._url} does not answer as expected ({error})."
                " Check BABYSIT_GRAFANA_URL and try again."
            ) from error
        if not isinstance(answer, dict):
            raise GrafanaUnreachableError(
                f"cannot {aim}: {self._url} answers with a web page. Check BABYSIT_GRAFANA_URL:"
                " it is the address of Grafana, with its path prefix if it has one."
            )
        return answer

    def _refusal(self, aim: str, error: GrafanaClientError) -> BabysitError:
        response = error.response if isinstance(error.response, dict) else {}
        said = str(response.get("message") or error.message)
        match error.status_code:
            case 401:
                return PermissionDeniedError(
                    f"cannot {aim}: Grafana at {self._url} does not accept the token. Set"
                    " BABYSIT_GRAFANA_TOKEN to a valid one of a service account."
                )
            case 403:
                return PermissionDeniedError(
                    f"cannot {aim}: the token lacks a permission ({said}). Give its service"
                    " account the role Editor."
                )
            case 404:
                return NotFoundError(f"cannot {aim}: Grafana at {self._url} has none ({said})")
            case 409 | 412:
                why = _REASONS.get(str(response.get("status")), said)
                return ConflictError(f"cannot {aim}: {why}")
            case _:
                return InvalidError(f"cannot {aim}: Grafana says: {said}")


def _ours(body: dict[str, Any]) -> dict[str, Any]:
    """A dashboard without what Grafana adds."""
    return {key: value for key, value in body.items() if key not in _OF_GRAFANA}
