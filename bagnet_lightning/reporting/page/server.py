"""A local server of the page of a sweep that goes on: reads the folders again when the page asks for data."""

import json
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bagnet_lightning.errors import UserError
from bagnet_lightning.reporting.page.page import results_page

FRESH = 2  # s for which data are not read again, whatever the number of requests
SHARE = 0.1  # of a core, at most, for reading: training needs the rest


class Server(ThreadingHTTPServer):
    """Serves / and /data.json, both made from what `read` returns (see page_data)."""

    daemon_threads = True

    def __init__(self, port: int, read: Callable[[], dict]):
        """Raises UserError if the port is taken; 0 is any free one."""
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"port={port}: {error.strerror}; port=0 takes any free one") from error
        self._read, self._lock, self._data, self._until = read, threading.Lock(), {}, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores the error of a browser that disconnects during a response."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def data(self) -> dict:
        """Returns the data with a tag that changes when anything in them but the time does."""
        with self._lock:
            if time.monotonic() > self._until:
                started = time.monotonic()
                data = self._read()
                tagged = {name: value for name, value in data.items() if name != "made"}
                self._data = data | {"tag": f'"{sha256(json.dumps(tagged).encode()).hexdigest()[:16]}"'}
                now = time.monotonic()
                self._until = now + max(FRESH, (now - started) / SHARE)
            return self._data


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        # Only requests to this machine's own names: not to another site's name that points here (DNS rebinding).
        if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(403)
            return
        try:
            self._answer()
        except UserError as error:  # the folder was removed
            self.send_error(503, explain=str(error))

    def _answer(self) -> None:
        if self.path == "/":
            self._send("text/html; charset=utf-8", results_page(self.server.data()).encode())
        elif self.path == "/data.json":
            data = self.server.data()
            if self.headers.get("If-None-Match") == data["tag"]:
                self.send_response(304)
                self.end_headers()
            else:
                self._send("application/json", json.dumps(data).encode(), data["tag"])
        else:
            self.send_error(404)

    def _send(self, kind: str, content: bytes, tag: str | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        """Logs nothing: a page sends a request every few seconds."""
