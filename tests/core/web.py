"""A web server on loopback that serves a folder, and fails where it is told to."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HTML = b"<html><body>the archive is being moved, please come back later</body></html>"


class Web:
    """The server and its faults.

    `faults` maps a key to what its next requests meet, the last one for ever: a status, ``"hang"``,
    ``"reset"``, ``"short"``, ``"html"``, ``"trickle"`` or ``"fine"``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranges, self.listing = folder, True, b""
        self.faults: dict[str, list] = {}
        self.asked: Counter[str] = Counter()
        self.busy = self.most_busy = 0
        self.delay = 0.0
        self.lock, self.closing = threading.Lock(), threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                web.answer(self, body=False)

            def do_GET(self):
                with web.lock:
                    web.busy += 1
                    web.most_busy = max(web.busy, web.most_busy)
                try:
                    web.answer(self, body=True)
                finally:
                    with web.lock:
                        web.busy -= 1

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def fault(self, key: str):
        with self.lock:
            self.asked[key] += 1
            planned = self.faults.get(key, ["fine"])
            return planned.pop(0) if len(planned) > 1 else planned[0]

    def answer(self, handler, *, body: bool) -> None:
        time.sleep(self.delay)
        key = handler.path.lstrip("/")
        fault = self.fault(key)
        if isinstance(fault, int):
            self.send(handler, fault, b"no" if body else b"")
        elif fault == "hang":
            self.closing.wait(60)
        elif fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(handler.connection.detach())
        elif fault == "html":
            self.send(handler, 200, HTML)
        elif not (self.folder / key).is_file():
            self.send(handler, 200 if self.listing and key.endswith("/") else 404, self.listing)
        else:
            self.send_file(handler, (self.folder / key).read_bytes(), fault, body=body)

    def send_file(self, handler, content: bytes, fault: str, *, body: bool) -> None:
        status, found = 200, re.fullmatch(r"bytes=(\d*)-(\d*)", handler.headers.get("Range", ""))
        if found and self.ranges:
            low, high = found.groups()
            status, stop = 206, int(high) + 1 if high and low else len(content)
            content = content[int(low) if low else -int(high) :][: stop - int(low or 0)]
        if fault == "short":
            self.send(handler, status, content[: len(content) // 2], length=len(content))
            handler.close_connection = True
        elif fault == "trickle":
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            for at in range(0, len(content), -(-len(content) // 10)):
                handler.wfile.write(content[at : at + -(-len(content) // 10)])
                handler.wfile.flush()
                time.sleep(0.1)
        else:
            self.send(handler, status, content, body=body)

    @staticmethod
    def send(handler, status: int, content: bytes, *, length: int | None = None, body: bool = True) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(content) if length is None else length))
            handler.end_headers()
            if body and handler.command != "HEAD":
                handler.wfile.write(content)
