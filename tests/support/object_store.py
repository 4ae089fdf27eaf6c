"""A real S3 server in a process of its own, and a real HTTP proxy before it that breaks what it is told to break."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("500", "503", "reset", "lost answer", "slow", "truncated", "stalled")
STALL_S = 0.6
"""Longer than the read timeout of a test that stalls."""


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a moto server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


class Proxy(ThreadingHTTPServer):
    """Passes requests on. `fault(method, path)` says what goes wrong with one: a name of `FAULTS`, a status, or None."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = port
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.seen: list[tuple[str, str, str | None, int]] = []
        """(method, path, range, bytes sent back) of every request."""

    def handle_error(self, request, client_address):
        """Clients that are gone are part of the game."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def at_random(self, seed: int, share: float, faults: tuple[str, ...] = FAULTS) -> None:
        """From now on this share of all requests goes wrong, each in one of these ways."""
        rng, lock = random.Random(seed), threading.Lock()

        def fault(method: str, path: str) -> str | None:
            with lock:
                return rng.choice(faults) if rng.random() < share else None

        self.fault = fault


@contextmanager
def proxy_of(port: int) -> Iterator[Proxy]:
    with Proxy(port) as proxy:
        thread = threading.Thread(
            target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        """Quiet."""

    def _pass_on(self) -> None:
        assert isinstance(self.server, Proxy)
        fault = self.server.fault(self.command, self.path)
        if fault == "reset":
            self._reset()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault and fault.isdigit():
            self._answer(int(fault), {}, b"", fault)
            return
        connection = HTTPConnection("127.0.0.1", self.server.port)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if fault == "lost answer":
            self._reset()  # after it was done
            return
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "date", "server")
        }
        self._answer(answer.status, headers, data, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on

    def _answer(self, status: int, headers: dict[str, str], data: bytes, fault: str | None) -> None:
        assert isinstance(self.server, Proxy)
        self.server.seen.append((self.command, self.path, self.headers.get("Range"), len(data)))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        middle = len(data) // 2
        self.wfile.write(data[:middle])
        if fault == "truncated" and data:
            self._reset()
            return
        if fault == "slow":
            time.sleep(0.02)
        if fault == "stalled":
            time.sleep(STALL_S)
        self.wfile.write(data[middle:])

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
