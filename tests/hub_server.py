"""A stand-in for the models hub on localhost: as much of its protocol as huggingface_hub uses to fetch a repository."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer:
    """Serves ``repositories``: {id: {revision: {file name: bytes}}}. ``stall_at`` makes downloads of large files hang at that byte."""

    def __init__(self, repositories: dict[str, dict[str, dict[str, bytes]]]) -> None:
        self.repositories = repositories
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range header
        self.stall_at: int | None = None
        self.gated = False  # describe models, but give no files
        self.garble = False  # send other bytes than were promised
        self.stalled = threading.Event()
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def release(self) -> None:
        """Let hanging downloads end (their connection breaks), and hang no more."""
        self.stall_at = None
        self._released.set()

    def ranges(self, name: str) -> list[str | None]:
        """The Range headers of the downloads of the large file ``name``."""
        return [
            header for method, path, header in self.requests if method == "GET" and path.startswith("/store/") and path.endswith("/" + name)
        ]

    def find(self, id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a branch or a commit; None if there is none."""
        for name, files in self.repositories[id].items():
            commit = hashlib.sha1(f"{id}@{name}".encode()).hexdigest()
            if revision in (name, commit):
                return commit, files
        return None

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # ``self`` is the handler's below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Quiet."""

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.requests.append((self.command, path, self.headers.get("Range")))
                if path.startswith("/api/models/"):
                    self.describe(path.removeprefix("/api/models/"))
                elif "/resolve/" in path and path.endswith(".safetensors") and not path.startswith("/store/"):
                    self.send(302, b"", {"Location": f"{hub.url}/store{path}"})  # the hub keeps large files elsewhere
                elif "/resolve/" in path:
                    self.send_file(path.removeprefix("/store"))
                else:
                    self.send(404, b"{}", {})

            def locate(self, id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
                if id not in hub.repositories:
                    self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
                    return None
                found = hub.find(id, revision)
                if found is None:
                    self.send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
                return found

            def describe(self, rest: str) -> None:
                owner, repo, *more = rest.split("/")
                if more == ["refs"] and f"{owner}/{repo}" in hub.repositories:
                    names = hub.repositories.get(f"{owner}/{repo}", {})
                    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": "0" * 40} for name in names]
                    self.send(200, json.dumps({"branches": branches, "converts": [], "tags": []}).encode(), {})
                    return
                found = self.locate(f"{owner}/{repo}", more[1] if len(more) > 1 else "main")
                if found is None:
                    return
                commit, files = found
                siblings = [sibling(name, data) for name, data in files.items()]
                answer = {"_id": "1", "id": f"{owner}/{repo}", "modelId": f"{owner}/{repo}", "sha": commit, "siblings": siblings}
                self.send(200, json.dumps({**answer, "private": False, "tags": [], "downloads": 0, "likes": 0}).encode(), {})

            def send_file(self, path: str) -> None:
                id, _, rest = path[1:].partition("/resolve/")
                revision, _, name = rest.partition("/")
                found = self.locate(id, revision)
                if found is None:
                    return
                if hub.gated:
                    self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
                    return
                data = found[1][name]
                content = bytes(len(data)) if hub.garble else data
                headers = {"X-Repo-Commit": found[0], "ETag": f'"{digest(data)}"', "Accept-Ranges": "bytes"}
                status, start = 200, 0
                wanted = self.headers.get("Range")
                if wanted:
                    start = int(wanted.removeprefix("bytes=").split("-")[0])
                    status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.send(status, content[start:], headers, start)

            def send(self, status: int, body: bytes, headers: dict[str, str], start: int = 0) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                stall = hub.stall_at
                try:
                    if stall is not None and start + len(body) > stall:
                        self.wfile.write(body[: stall - start])
                        self.wfile.flush()
                        hub.stalled.set()
                        hub._released.wait(60)
                        self.close_connection = True
                        return
                    self.wfile.write(body)
                except OSError:  # the other side went away, as it does in some tests
                    self.close_connection = True

        return Handler


def digest(data: bytes) -> str:
    """What git calls the id of a blob."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def sibling(name: str, data: bytes) -> dict[str, Any]:
    """How the hub describes a file; large ones are kept apart and have a SHA-256."""
    lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {"rfilename": name, "size": len(data), "blobId": digest(data), **({"lfs": lfs} if name.endswith(".safetensors") else {})}
