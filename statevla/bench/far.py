"""A store that is far, on this machine: servers of a folder that answer after a while, and lose connections when told.

HTTP with byte ranges, or an S3 (moto, of the extra ``dev``). Each in threads of this process, or in a process of its
own (`apart`), so that what a server costs is not counted as a reader's.
"""

import contextlib
import http.server
import multiprocessing
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

LATENCY: Final = 0.05
"""Seconds that every answer takes: a distant region of a cloud."""
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")


class FolderServer(http.server.ThreadingHTTPServer):
    """Serves `folder` on loopback, ranges too. latency: seconds before each answer.

    drops, shorts: answers to come that break off in the middle, and that say and hold half of what was asked for; a
    test sets them. served: (path, range) of every request.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, latency: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.latency = folder, latency
        self.drops = self.shorts = 0
        self.served: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        """Of the folder."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Readers come and go."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FolderServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.served.append((self.path, asked))
        time.sleep(server.latency)
        path = server.folder / self.path.lstrip("/")
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            self.send_error(404)
            return
        try:
            size = os.fstat(descriptor).st_size
            told = _RANGE.fullmatch(asked or "")
            start = int(told[1]) if told else 0
            stop = min(int(told[2]) + 1, size) if told and told[2] else size
            if server.shorts > 0 and told and self.command == "GET":
                server.shorts -= 1
                stop = start + (stop - start) // 2
            self.send_response(206 if told else 200)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Accept-Ranges", "bytes")
            if told:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if server.drops > 0:
                server.drops -= 1
                stop, self.close_connection = start + (stop - start) // 2, True
            self.wfile.flush()
            while start < stop:
                start += os.sendfile(self.connection.fileno(), descriptor, start, stop - start)
            if self.close_connection:
                self.connection.shutdown(socket.SHUT_RDWR)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def serve_folder(folder: Path, latency: float = 0.0) -> Iterator[FolderServer]:
    """A `FolderServer` in threads of this process."""
    server = FolderServer(folder, latency)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serve_s3(latency: float = 0.0) -> Iterator[str]:
    """An empty S3 in threads of this process; its endpoint. Raises ImportError where moto is not installed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):  # type: ignore[misc]
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:
            """Nothing."""

    inner = DomainDispatcherApplication(create_backend_app)

    def application(environ: Any, start_response: Any) -> Any:
        time.sleep(latency)
        return inner(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def apart(serve: Callable[..., Any], *arguments: Any, cores: set[int] | None = None) -> Iterator[str]:
    """`serve` in a process of its own, on `cores` where they are given: the URL, or the endpoint, that it yields."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, serve, arguments, cores), daemon=True)
    process.start()
    theirs.close()  # where the process ends without a word, `recv` ends too
    try:
        yield mine.recv()
    finally:
        mine.close()
        process.join(5)
        process.kill()


def _serve(channel: Connection, serve: Callable[..., Any], arguments: Any, cores: set[int] | None) -> None:
    if cores is not None:
        os.sched_setaffinity(0, cores)
    with serve(*arguments) as served:
        channel.send(served if isinstance(served, str) else served.url)
        with contextlib.suppress(EOFError):
            channel.recv()
