"""A hub on this machine, over real HTTP: the endpoints, headers and refusals of the real one.

Small files come from the hub itself, large ones by a redirect to another host, as from its storage.
"""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".onnx", ".pth")


class Hub(ThreadingHTTPServer):
    """`repos`: repository -> path -> bytes. The other fields: how it misbehaves; `seen`: what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.loose: dict[str, bytes] = {}  # files outside the hub: path -> bytes
        self.gated: set[str] = set()
        self.token: str | None = None  # the one that is valid; None: every token is
        self.accepted = False  # whether its owner has accepted the licences
        self.refusal = ""  # what a gated repository answers to a valid token
        self.status = 0  # answer everything with this
        self.cut: dict[str, int] = {}  # file -> break off after so many bytes, once
        self.slow = 0.0  # seconds between two kilobytes of large files
        self.sizes: dict[str, int] = {}  # file -> the size it is said to have
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """The paths, within their repositories, of the files whose bytes were sent."""
        return {
            path.rsplit("/file/", 1)[1]
            for method, path, _ in self.seen
            if method == "GET" and "/file/" in path
        }

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, path, headers))
        if self.server.status:
            return self.send(self.server.status, b"{}")
        parts = path.strip("/").split("/")
        if parts[0] in ("file", "loose"):
            return self.send_bytes(path)
        if parts[:2] == ["api", "models"]:
            return self.answer_api("/".join(parts[2:4]), parts[4:])
        return self.answer_file("/".join(parts[:2]), "/".join(parts[4:]))

    def refused(self, repo: str, gate: bool) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and self.server.token not in (None, given):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo not in self.server.repos:
            self.refuse(404 if given else 401, "RepoNotFound", "Repository not found")
        elif gate and repo in self.server.gated and not given:
            self.refuse(401, "GatedRepo", f"Access to model {repo} is restricted. You must be authenticated.")
        elif gate and repo in self.server.gated and not self.server.accepted:
            self.refuse(403, "GatedRepo", self.server.refusal or f"Access to model {repo} is restricted.")
        else:
            return False
        return True

    def answer_api(self, repo: str, rest: list[str]) -> None:
        if self.refused(repo, gate=False):
            return
        if rest[:1] != ["tree"]:
            return self.send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": []}).encode())
        entries = [self.describe(path, data) for path, data in self.server.repos[repo].items()]
        self.send(200, json.dumps(entries).encode())

    def describe(self, path: str, data: bytes) -> dict:
        size = self.server.sizes.get(path, len(data))
        entry = {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(data).hexdigest()}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 135}
        return entry

    def answer_file(self, repo: str, path: str) -> None:
        if self.refused(repo, gate=True):
            return
        data = self.server.repos[repo].get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if path.endswith(LARGE):
            storage = f"http://localhost:{self.server.server_port}/file/{repo}/file/{path}"
            size = self.server.sizes.get(path, len(data))
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(size)}
            return self.send(302, b"", headers | {"Location": storage})
        self.server.seen.append((self.command, f"/file/{repo}/file/{path}", {}))
        self.send(200, data, headers)

    def send_bytes(self, path: str) -> None:
        if path.startswith("/loose/"):
            name, data = path, self.server.loose.get(path.removeprefix("/loose/"))
        else:
            repo, name = path.removeprefix("/file/").split("/file/", 1)
            data = self.server.repos[repo].get(name)
        if data is None:
            return self.send(404, b"not found")
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start and start >= len(data):
            return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        body = data[start:]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut.pop(name, None)
        body, self.close_connection = body[:cut], cut is not None
        for k in range(0, len(body), 1024 if self.server.slow else len(body)):
            self.wfile.write(body[k : k + 1024] if self.server.slow else body)
            time.sleep(self.server.slow)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message},
        )

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
