"""An S3 server behind a proxy that fails or dawdles: ``python s3.py FOLDER [--fail P] [--delay SECONDS]``.

Bucket ``given`` holds the volumes of the folder, ``made`` those of its folder ``out``. Says the proxy's address;
on a line ``fetch`` it says all that is in ``made``, as JSON from keys to hexadecimal bytes.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEPT = {"connection", "transfer-encoding", "content-length", "server", "date"}


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


def main() -> None:
    import s3fs
    from moto.server import ThreadedMotoServer

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fail", type=float, default=0)
    parser.add_argument("--delay", type=float, default=0)
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    options = {"client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"}}
    fs = s3fs.S3FileSystem(key="k", secret="s", **options)
    for bucket, folder in (("given", given.folder), ("made", given.folder / "out")):
        fs.mkdir(bucket)
        for path in folder.rglob("*"):
            key = path.relative_to(folder)
            if path.is_file() and ".zarr" in str(key) and key.parts[0] != "out":
                fs.pipe_file(f"{bucket}/{key}", path.read_bytes())
    server = proxy(port, given.fail, given.delay)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.readline()
    fs.invalidate_cache()
    print(json.dumps({path.removeprefix("made/"): fs.cat_file(path).hex() for path in fs.find("made")}))


if __name__ == "__main__":
    main()
