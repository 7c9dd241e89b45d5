"""The way out when it stops: no connection is left that nobody looks at."""

import asyncio
import socket

import pytest
from egress_gateway import Vendor, egress_gateway, says


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_connects_as_the_listener_stops_is_not_left_waiting(tmp_path, turns):
    """`turns` of the loop after the connections have come, which is how far they have got by then."""
    async with egress_gateway(tmp_path, Vendor(says())) as out:
        clients = [socket.create_connection(("127.0.0.1", out.port)) for _ in range(20)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await out.egress.stop()
        for client in clients:
            client.setblocking(False)
            try:
                async with asyncio.timeout(2):
                    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
            except ConnectionError:
                pass
            client.close()
