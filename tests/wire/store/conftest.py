"""A server of each kind, for tests that hold for both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgres_cluster import Cluster
from store_servers import StoreServer, postgres_server, valkey_server


@pytest.fixture(params=["valkey", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    """One that a test may kill and freeze."""
    if request.param == "valkey":
        with valkey_server() as made:
            yield made
        return
    own: Cluster = request.getfixturevalue("mortal")
    if not own.running:
        own.start()
    with postgres_server(own) as made:
        yield made
    if not own.running:
        own.start()
