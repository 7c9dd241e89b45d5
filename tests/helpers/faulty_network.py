"""A bad network between two who believe in it: it stalls, cuts, swallows, and speaks TLS where it is told to."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator

RETRANSMISSION = 0.25  # seconds: what TCP takes to send again what was lost (RFC 6298: no less than 200 ms in practice)
SSL_REQUEST = struct.pack("!II", 8, 80877103)


class FaultyNetwork:
    """Relays `port` to `target`; connections are told apart by nothing. `close` ends all."""

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target, self._tls = target, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self.down_limit: int | None = None  # bytes from the target, a connection, after which it goes silent
        self.delay = 0.0  # seconds that bytes from the target take longer
        self.loss = 0.0  # the share of pieces that are lost and come again after RETRANSMISSION
        self.taken = 0  # connections so far
        self.down = 0  # bytes from the target so far
        self._live: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    # ── what goes wrong ─────────────────────────────────────────────────────────────────────

    def stall(self) -> None:
        """Nothing passes any more, either way; connections are still accepted."""
        self._flowing.clear()

    def flow(self) -> None:
        self.down_limit = None
        self._flowing.set()

    def cut(self) -> None:
        """Reset all connections there are."""
        with self._lock:
            live, self._live = self._live, set()
        for sock in live:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)
        for sock in live:
            sock.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    # ── the relay ───────────────────────────────────────────────────────────────────────────

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.taken += 1
            self._start(self._serve, near)

    def _start(self, what: object, *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, near: socket.socket) -> None:
        try:
            if self._tls is not None:
                if near.recv(8, socket.MSG_WAITALL) != SSL_REQUEST:
                    near.close()
                    return
                near.sendall(b"S")
                near = self._tls.wrap_socket(near, server_side=True)
            far = socket.create_connection(("127.0.0.1", self._target), 5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._live |= {near, far}
        self._start(self._pump, near, far, False)
        self._start(self._pump, far, near, True)

    def _pump(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        passed = 0
        try:
            while data := source.recv(1 << 16):
                self._flowing.wait()
                if down and self.delay:
                    time.sleep(self.delay)
                if self.loss and random.random() < self.loss:
                    time.sleep(RETRANSMISSION)
                if down:
                    limit = self.down_limit
                    if limit is not None and passed + len(data) > limit:
                        sink.sendall(data[: max(0, limit - passed)])
                        passed = limit
                        self._flowing.clear()
                        self._flowing.wait()
                    else:
                        sink.sendall(data)
                        passed += len(data)
                    self.down += len(data)
                else:
                    sink.sendall(data)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            if down:
                with self._lock:
                    self._live -= {source, sink}
                for sock in (source, sink):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)  # wakes the other pump, which close alone would not
                    sock.close()


@contextlib.contextmanager
def faulty_network(target: int, *, tls: ssl.SSLContext | None = None) -> Iterator[FaultyNetwork]:
    shim = FaultyNetwork(target, tls=tls)
    try:
        yield shim
    finally:
        shim.close()
