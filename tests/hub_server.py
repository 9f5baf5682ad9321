"""The hub as far as its file system asks for it: a folder served as one data set, with a list of what was fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Served:
    """What a hub at `address` was asked for."""

    address: str
    fetched: list[tuple[str, int, int]] = field(default_factory=list)
    """Name of the file, first byte, number of bytes."""


@contextmanager
def hub_of(folder: Path, status: int = 206) -> Iterator[Served]:
    """A hub on this machine whose only data set is the folder at COMMIT; any other status refuses all files."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if match := re.fullmatch(rf"/api/datasets/([^/]+/[^/]+)/revision/{COMMIT}", path):
                self.answer(200, json.dumps({"id": match[1], "sha": COMMIT}).encode())
            elif match := re.fullmatch(rf"/api/datasets/[^/]+/[^/]+/tree/{COMMIT}/?(.*)", path):
                found = [
                    {
                        "type": "file" if each.is_file() else "directory", "oid": "0", "size": each.stat().st_size,
                        "path": each.relative_to(folder).as_posix(),
                    }
                    for each in sorted((folder / match[1]).iterdir())
                ]  # fmt: skip
                self.answer(200, json.dumps(found).encode())
            elif match := re.fullmatch(rf"/datasets/[^/]+/[^/]+/resolve/{COMMIT}/(.+)", path):
                first, last = map(int, self.headers["range"].removeprefix("bytes=").split("-"))
                content = (folder / match[1]).read_bytes()[first : last + 1] if status == 206 else b""
                served.fetched.append((Path(match[1]).name, first, len(content)))
                self.answer(status, content)
            else:
                self.answer(404, b"")

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            if status == 403:
                self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    served = Served(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
