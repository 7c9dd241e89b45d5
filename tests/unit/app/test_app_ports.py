"""The public port in a command, behind whatever option servers take a port by."""

from __future__ import annotations

import shlex

import pytest

from proxy.app.command import parse_command

PUBLIC, PRIVATE = 10000, 41234


@pytest.mark.parametrize(
    ("line", "started"),
    [
        ("streamlit run a.py --server.port 10000", "streamlit run a.py --server.port 41234"),
        ("streamlit run a.py --server.port=10000", "streamlit run a.py --server.port=41234"),
        ("kc.sh start --http-port 10000", "kc.sh start --http-port 41234"),
        ("kc.sh start --http-port=10000", "kc.sh start --http-port=41234"),
        ("jupyter lab --ServerApp.port=10000", "jupyter lab --ServerApp.port=41234"),
        ("serve -P 10000", "serve -P 41234"),
        ("serve -P10000", "serve -P41234"),
        ("serve --server-port 10000", "serve --server-port 41234"),
        ("uwsgi --http :10000 -w a:b", "uwsgi --http :41234 -w a:b"),
        ("uwsgi --http-socket 0.0.0.0:10000 -w a:b", "uwsgi --http-socket 0.0.0.0:41234 -w a:b"),
        ("waitress-serve --listen=*:10000 a:b", "waitress-serve --listen=*:41234 a:b"),
        ("app --quic-bind [::]:10000", "app --quic-bind [::]:41234"),
        # none of these is a port
        ("app --transport 10000", "app --transport 10000"),
        ("app --max-requests 10000", "app --max-requests 10000"),
        ("app --support 10000", "app --support 10000"),
        ("app -P 100001", "app -P 100001"),
        ("app --port-range 10000", "app --port-range 10000"),
    ],
)
@pytest.mark.parametrize("one", [True, False])
def test_the_public_port_is_replaced_behind_an_option_that_names_a_port(line, started, one):
    found = parse_command([line] if one else line.split(), PUBLIC, PRIVATE)
    assert shlex.split(found.display) == shlex.split(started)
    assert bool(found.replaced_words) == (line != started)
