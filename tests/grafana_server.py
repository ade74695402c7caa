"""A stand-in for Grafana that follows the contract of its documented HTTP API.

From the pages on dashboards, folders and annotations of Grafana's documentation: bearer tokens
(401 without a valid one), permissions by role (403 for a viewer that writes), 404 for a uid that
there is not, and for a save 412 with `version-mismatch` if the dashboard has a newer version and
`name-exists` if another dashboard of the folder has the title; 409 for a folder that exists. Saved
dashboards get an id and a version that grows by one.
"""

from __future__ import annotations

import copy
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

EDITOR, VIEWER = "glsa_editor", "glsa_viewer"
_ROLES = {EDITOR: "Editor", VIEWER: "Viewer"}


class GrafanaServer:
    """Serves until left.

    Attributes:
        dashboards: By uid: the dashboard with id and version, and the uid of its folder.
        folders: By uid: the title.
        annotations: By id.
        broken: A status that every request gets instead of its answer; 0: none.
        before_save: Called once before the next save, as a person who is quicker.
    """

    def __init__(self) -> None:
        self.dashboards: dict[str, tuple[dict[str, Any], str]] = {}
        self.folders: dict[str, str] = {}
        self.annotations: dict[int, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken = 0
        self.before_save: Any = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def edit(self, uid: str, **fields: Any) -> None:
        """A person changes a dashboard in the browser."""
        body, folder = self.dashboards[uid]
        self.dashboards[uid] = ({**body, **fields, "version": body["version"] + 1}, folder)

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        """Status and body for one request."""
        self.requests.append((method, path))
        if self.broken:
            return self.broken, {"message": "database is locked"}
        if token not in _ROLES:
            return 401, {"message": "Invalid API key"}
        if method != "GET" and _ROLES[token] != "Editor":
            needs = {"/api/folders": "folders:create", "/api/annotations": "annotations:create"}
            need = needs.get(path, "dashboards:write")
            return 403, {"message": f"Access denied. Permissions needed: {need}"}
        if path.startswith("/api/annotations"):
            return self._on_annotations(method, path, body)
        kind, _, uid = path.removeprefix("/api/").rpartition("/")
        match method, kind:
            case "GET", "folders":
                return self._folder(uid)
            case "GET", "dashboards/uid":
                return self._dashboard(uid)
            case "POST", "":
                return self._create_folder(body)
            case "POST", "dashboards":
                return self._save(body)
        return 404, {"message": "Not found"}

    def _on_annotations(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        route, _, query = path.partition("?")
        if method == "PATCH":
            return self._change(int(route.rpartition("/")[2]), body)
        return self._annotations(query) if method == "GET" else self._annotate(body)

    def _annotations(self, query: str) -> tuple[int, Any]:
        wanted = urllib.parse.parse_qs(query)
        tags, limit = wanted.get("tags", []), int(wanted.get("limit", ["100"])[0])
        all_of_them = wanted.get("matchAny") != ["true"]
        found = [
            {"id": id_, **each}
            for id_, each in self.annotations.items()
            if (all if all_of_them else any)(tag in each["tags"] for tag in tags)
        ]
        return 200, found[:limit]

    def _annotate(self, body: Any) -> tuple[int, Any]:
        if not body.get("text"):
            return 400, {"message": "Failed to save annotation: text field should not be empty"}
        id_ = len(self.annotations) + 1
        self.annotations[id_] = {"timeEnd": body["time"], **body}
        return 200, {"message": "Annotation added", "id": id_}

    def _change(self, id_: int, body: Any) -> tuple[int, Any]:
        if id_ not in self.annotations:
            return 404, {"message": "Could not find annotation to update"}
        self.annotations[id_].update(body)
        return 200, {"message": "Annotation patched"}

    def _folder(self, uid: str) -> tuple[int, Any]:
        if uid not in self.folders:
            return 404, {"message": "folder not found", "status": "not-found"}
        return 200, {"id": 1, "uid": uid, "title": self.folders[uid], "version": 1}

    def _create_folder(self, body: Any) -> tuple[int, Any]:
        if not body.get("title"):
            return 400, {"message": "folder title cannot be empty"}
        if body["title"] in self.folders.values() or body.get("uid") in self.folders:
            return 409, {"message": "a folder with the same name already exists in the location"}
        self.folders[body["uid"]] = body["title"]
        return self._folder(body["uid"])

    def _dashboard(self, uid: str) -> tuple[int, Any]:
        if uid not in self.dashboards:
            return 404, {"message": "Dashboard not found", "status": "not-found"}
        body, folder = self.dashboards[uid]
        return 200, {"dashboard": body, "meta": {"folderUid": folder, "version": body["version"]}}

    def _save(self, message: Any) -> tuple[int, Any]:
        if self.before_save is not None:
            quicker, self.before_save = self.before_save, None
            quicker()
        body, folder = copy.deepcopy(message["dashboard"]), message.get("folderUid", "")
        if not body.get("title"):
            return 400, {"message": "Dashboard title cannot be empty", "status": "empty-name"}
        if folder not in self.folders:
            return 400, {"message": "folder not found", "status": "not-found"}
        uid = body["uid"]
        there = self.dashboards.get(uid)
        if not message.get("overwrite"):
            if there is not None and body.get("version") != there[0]["version"]:
                said = "The dashboard has been changed by someone else"
                return 412, {"message": said, "status": "version-mismatch"}
            titles = {
                other["title"]
                for other, where in self.dashboards.values()
                if where == folder and other["uid"] != uid
            }
            if body["title"] in titles:
                said = "A dashboard with the same name in the folder already exists"
                return 412, {"message": said, "status": "name-exists"}
        body["id"] = len(self.dashboards) + 1 if there is None else there[0]["id"]
        body["version"] = 1 if there is None else there[0]["version"] + 1
        self.dashboards[uid] = (body, folder)
        found = {"id": body["id"], "uid": uid, "url": f"/d/{uid}/{uid}", "status": "success"}
        return 200, {**found, "version": body["version"], "slug": uid}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        grafana = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._serve("GET")

            def do_POST(self) -> None:
                self._serve("POST")

            def do_PATCH(self) -> None:
                self._serve("PATCH")

            def _serve(self, method: str) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                status, answer = grafana.answer(method, self.path, token, body)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json; charset=UTF-8")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
