"""A hub on a loopback port that keeps what is pushed in memory: enough of its API for one repository of small files."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_servers import serving_http

_COMMIT = "0" * 39 + "1"


class Hub:
    """The hub.

    Attributes:
        files: path → content of the only repository.
        created: what the client asked for when it created it.
        refuses: status of every answer to a commit; None to accept.
        address: of the hub.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}
        self.refuses: int | None = None
        self.address = ""


class _Handler(BaseHTTPRequestHandler):
    """Answers for a hub, which a subclass names."""

    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json")

    def do_POST(self) -> None:
        hub, body = self.hub, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.refuses is not None and not self.path.endswith("/create"):
            self._json({"error": "no"}, hub.refuses)
        elif self.path == "/api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif self.path == "/api/repos/create":
            hub.created = json.loads(body)
            self._json({"url": f"{hub.address}/owner/{hub.created['name']}"})
        elif "/preupload/" in self.path:
            names = [one["path"] for one in json.loads(body)["files"]]
            self._json({"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in names]})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json({"commitUrl": f"{hub.address}/owner/name/commit/{_COMMIT}", "commitOid": _COMMIT})

    def do_GET(self) -> None:
        files, path = self.hub.files, self.path.partition("?")[0]
        if "/tree/" in path:
            self._json(
                [{"type": "file", "path": name, "size": len(one), "oid": _etag(one)} for name, one in files.items()]
            )
        elif "/resolve/" in path:
            content = files.get(path.split("/resolve/", 1)[1].split("/", 1)[1])
            if content is None:
                self._send(b"", 404, X_Error_Code="EntryNotFound")
            else:
                self._send(content, ETag=f'"{_etag(content)}"', X_Repo_Commit=_COMMIT)
        else:
            self._json({"id": "owner/name", "sha": _COMMIT, "siblings": [{"rfilename": one} for one in files]})

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    with serving_http(type("Handler", (_Handler,), {"hub": hub})) as hub.address:
        yield hub


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
