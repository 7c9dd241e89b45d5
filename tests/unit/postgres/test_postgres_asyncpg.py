"""What of asyncpg is private and used all the same: a version that names it otherwise fails here, and not at a
customer's. requirements.txt pins the versions that this was run with."""

from __future__ import annotations

import asyncio
import inspect

import asyncpg
import pytest
from asyncpg import connect_utils
from asyncpg.protocol import Protocol

from proxy.postgres.connector import REPORTED_PARAMETERS


@pytest.mark.parametrize("name", ["_transport", "_protocol", "_addr", "_params"])
def test_a_connection_has_these(name):
    assert name in asyncpg.Connection.__slots__


@pytest.mark.parametrize("name", ["backend_pid", "backend_secret", "connection_lost", "data_received", "get_settings"])
def test_its_protocol_has_these(name):
    assert hasattr(Protocol, name)


def test_its_protocol_is_a_plain_one():
    assert not issubclass(Protocol, asyncio.BufferedProtocol)


def test_a_query_is_cancelled_by_these_arguments():
    assert inspect.iscoroutinefunction(connect_utils._cancel)
    assert set(inspect.signature(connect_utils._cancel).parameters) == {
        "loop",
        "addr",
        "params",
        "backend_pid",
        "backend_secret",
    }


def test_what_a_server_reports_is_asked_by_name():
    assert "get_settings" in dir(asyncpg.Connection)
    assert len(set(REPORTED_PARAMETERS)) == len(REPORTED_PARAMETERS)


def test_a_message_of_its_transport_goes_to_whoever_sits_there():
    assert "set_protocol" in inspect.getsource(connect_utils)  # it does so itself, for TLS
