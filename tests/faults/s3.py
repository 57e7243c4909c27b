"""An S3 server, in a fork, behind a proxy that fails or dawdles.

Bucket ``given`` holds the volumes of a folder, ``made`` those of its folder ``out``.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import random
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from tests.faults.bench import Bench

KEPT = {"connection", "transfer-encoding", "content-length", "server", "date"}
LONGEST_S = 120


@contextlib.contextmanager
def bucket(
    bench: Bench, *, fail: float = 0, delay: float = 0
) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, bytes]]]]:
    """Storage options of a server, and a call that ends it and tells all that is in ``made``.

    Parameters
    ----------
    bench : Bench
        Whose folder is served.
    fail : float
        Share of requests that are answered by a 503, before or after they had their effect.
    delay : float
        Seconds, of each request.
    """
    ours, its = multiprocessing.Pipe()

    def work() -> None:
        ours.close()
        serve(bench.home, its, fail, delay)

    server = bench.fork(work, log="s3.txt")
    its.close()
    try:
        url = ours.recv()

        def fetch() -> dict[str, bytes]:
            ours.send("fetch")
            found: dict[str, bytes] = ours.recv()
            return found

        yield {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": url}}, fetch
    finally:
        ours.close()
        bench.finish(server)


def serve(folder: Path, told: Connection, fail: float, delay: float) -> None:
    """Serve until the other side is gone."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    options = {"client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"}}
    fs = s3fs.S3FileSystem(key="k", secret="s", **options)
    for name, source in (("given", folder), ("made", folder / "out")):
        fs.mkdir(name)
        for path in source.rglob("*"):
            key = path.relative_to(source)
            if path.is_file() and ".zarr" in str(key) and key.parts[0] != "out":
                fs.pipe_file(f"{name}/{key}", path.read_bytes())
    server = proxy(port, fail, delay)
    told.send(f"http://127.0.0.1:{server.server_port}")
    with contextlib.suppress(EOFError):
        told.recv()
        fs.invalidate_cache()
        told.send({path.removeprefix("made/"): fs.cat_file(path) for path in fs.find("made")})
        told.recv()


def proxy(port: int, fail: float, delay: float) -> ThreadingHTTPServer:  # noqa: C901 - a class inside
    """Hand requests on to `port`; some are answered by a 503, before or after they had their effect."""
    chance = random.Random(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_one(self) -> None:
            time.sleep(delay)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            broken = chance.random() < fail
            if broken and chance.random() < 0.5:
                self.reply(503, {}, b"")
                return
            upstream = HTTPConnection("127.0.0.1", port, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            headers = dict(answer.getheaders())
            upstream.close()
            if broken:
                self.reply(503, {}, b"")
                return
            self.reply(answer.status, headers, content)

        def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for key, value in headers.items():
                if key.lower() not in KEPT:
                    self.send_header(key, value)
            length = str(len(content))
            if self.command == "HEAD":
                length = headers.get("Content-Length", headers.get("content-length", "0"))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
