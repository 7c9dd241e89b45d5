"""MiB a second down, up and over a WebSocket's connection, beside nginx; memory meanwhile."""

import socket
import time

import peers
from bench_tools import Bench, Peer, table

SIZE = 1024 * 2**20
PIECE = memoryview(bytes(262144))


def down(port: int, *, upgrade: bool = False) -> float:
    head = f"GET /big/{SIZE} HTTP/1.1\r\nHost: localhost\r\n"
    if upgrade:
        head += "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        head += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"{head}\r\n".encode())
        buffer = bytearray(1 << 18)
        began, got = time.perf_counter(), 0
        while got < SIZE:
            count = sock.recv_into(buffer)
            assert count, f"the answer ended after {got} bytes"
            got += count
        return SIZE / 2**20 / (time.perf_counter() - began)


def up(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(f"POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n".encode())
        began, sent = time.perf_counter(), 0
        while sent < SIZE:
            sent += sock.send(PIECE[: min(len(PIECE), SIZE - sent)])
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        return SIZE / 2**20 / (time.perf_counter() - began)


def main() -> None:
    print("1 GiB each way, MiB a second")
    with Bench() as bench:
        compared: list[Peer] = [peer for peer in (peers.nginx(bench), bench.outrigger()) if peer]
        rows = [["direct", *(f"{rate:,.0f}" for rate in rates(bench.app_port)), "—"]]
        for peer in compared:
            row = [f"{rate:,.0f}" for rate in rates(peer.port)]
            rows.append([peer.name, *row, f"{peer.resident():.0f}"])
        table(["", "down", "up", "WebSocket", "resident MiB afterwards"], rows)


def rates(port: int) -> tuple[float, float, float]:
    return down(port), up(port), down(port, upgrade=True)


if __name__ == "__main__":
    main()
