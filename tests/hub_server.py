"""A real HTTP server on loopback that speaks the dataset endpoints of the Hugging Face hub."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "lerobot/tiny"


class Hub(ThreadingHTTPServer):
    """Serves one folder as one revision (`main`) of one dataset."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.fetched: list[str] = []
        """Paths of files whose content was sent."""
        self.broken: set[str] = set()
        """Paths of files that are refused."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server(root: Path) -> Iterator[Hub]:
    with Hub(root) as hub:
        thread = Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._reply(is_head=True)

    def do_GET(self) -> None:
        self._reply(is_head=False)

    def _reply(self, *, is_head: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        api, resolve = f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve/{COMMIT}/"
        if path in {api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"}:
            self._send_json({"id": NAME, "sha": COMMIT, "siblings": []})
        elif path == f"{api}/tree/{COMMIT}":
            files = [file for file in sorted(self.server.root.rglob("*")) if file.is_file()]
            self._send_json([self._entry(file) for file in files])
        elif path.startswith(resolve) and path.removeprefix(resolve) not in self.server.broken:
            self._send_file(path.removeprefix(resolve), is_head=is_head)
        else:
            is_known = path.startswith((f"{api}/", resolve))
            code = "RevisionNotFound" if is_known else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": "Not found"})

    def _entry(self, file: Path) -> dict[str, object]:
        name = file.relative_to(self.server.root).as_posix()
        size = file.stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": _etag(file.read_bytes())}

    def _send_file(self, name: str, *, is_head: bool) -> None:
        content = (self.server.root / name).read_bytes()
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT}
        if not is_head:
            self.server.fetched.append(name)
        self._send(200, content, headers, is_head=is_head)

    def _send_json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], *, is_head: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not is_head:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
