"""A line between a client and a server: slow, or broken where it is told to be; every request is counted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from urllib.parse import urlsplit

HTML = b"<html><body>the archive is being moved, please come back later</body></html>"
REFUSAL = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>no</Message></Error>"
CODES = {
    403: b"AccessDenied",
    404: b"NoSuchKey",
    500: b"InternalError",
    501: b"NotImplemented",
    503: b"SlowDown",
    507: b"InsufficientCapacity",
}
PARTED = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")


class Line:
    """A proxy on loopback, on a thread of its own.

    `faults` maps the end of a path to what its next requests meet, the last one for ever: a status, ``"hang"``,
    ``"reset"``, ``"short"``, ``"html"`` or ``"fine"``. What `replays` asks the server once and answers from memory.
    """

    def __init__(self, upstream: str, *, delay: float = 0.0, replays: bool = False) -> None:
        self.upstream, self.delay, self.replays = urlsplit(upstream).netloc, delay, replays
        self.faults: dict[str, list] = {}
        self.asked: Counter[str] = Counter()
        self.sent = 0
        self._known: dict[tuple[str, str, str], tuple[int, list, bytes]] = {}
        self._loop = asyncio.new_event_loop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        started = asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**20, backlog=512)
        self._server = self._loop.run_until_complete(started)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            served = asyncio.all_tasks() - {asyncio.current_task()}
            for task in served:
                task.cancel()
            await asyncio.gather(*served, return_exceptions=True)
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _fault(self, path: str) -> object:
        for end, planned in self.faults.items():
            if path.endswith(end):
                return planned.pop(0) if len(planned) > 1 else planned[0]
        return "fine"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await self._answer(reader, writer):
                pass
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = [tuple(line.split(": ", 1)) for line in head[1:] if ": " in line]
        told = {name.lower(): value for name, value in headers}
        if "expect" in told:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(told.get("content-length", 0)))
        path = urlsplit(target).path
        self.asked[f"{method} {path}"] += 1
        await asyncio.sleep(self.delay)
        fault = self._fault(path)
        if fault == "hang":
            await asyncio.sleep(600)
        if fault == "reset":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if isinstance(fault, int):
            status, given, content = fault, [], REFUSAL % CODES[fault]
        elif fault == "html":
            status, given, content = 200, [("Content-Type", "text/html")], HTML
        else:
            key = (method, target, told.get("range", ""))
            answer = self._known.get(key) or await asyncio.to_thread(self._ask, method, target, headers, body)
            if self.replays and method in ("GET", "HEAD"):
                self._known[key] = answer
            status, given, content = answer
        length = next((value for name, value in given if name.lower() == "content-length"), len(content))
        lines = [
            f"HTTP/1.1 {status} {http.client.responses.get(status, 'told')}",
            f"Content-Length: {length}",
        ]
        lines += [f"{name}: {value}" for name, value in given if name.lower() not in PARTED]
        sent = b"" if method == "HEAD" else content[: len(content) // 2] if fault == "short" else content
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + sent)
        self.sent += len(sent)
        await writer.drain()
        return fault != "short"

    def _ask(self, method: str, target: str, headers: list, body: bytes) -> tuple[int, list, bytes]:
        server = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            server.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() not in PARTED:
                    server.putheader(name, value)
            if body or method in ("PUT", "POST"):
                server.putheader("Content-Length", str(len(body)))
            server.endheaders(body)
            found = server.getresponse()
            return found.status, found.getheaders(), found.read()
        finally:
            server.close()


def start_moto() -> tuple[subprocess.Popen, str]:
    """An S3 server in a process of its own, and its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return server, url
    server.kill()
    msg = "moto's server does not answer"
    raise RuntimeError(msg)


def main() -> None:
    """A slow line in a process of its own: prints its URL, and ends with its standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream")
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    line = Line(given.upstream, delay=given.delay, replays=True)
    print(line.url, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
