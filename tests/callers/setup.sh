#!/bin/sh
# Environments of their own for callers that apps use: older SDKs and other libraries would quarrel in .venv.
# One a file here, NAME.txt for pip and package.json for npm, all at once; what cannot be set up is said, and its
# tests skip.
cd "$(dirname "$0")/../.." || exit 1

fresh() { [ -e "$1/.stamp" ] && [ -z "$(find "$2" -newer "$1/.stamp")" ]; }
sorry() { echo "$1 could not be set up; tests that need it will say so" >&2; }

python_caller() {
    name=$(basename "$1" .txt)
    venv=.venv-callers-$name
    fresh "$venv" "$1" && return
    echo "setting up a caller ($venv) …"
    rm -rf "$venv"
    { .venv/bin/python -m venv "$venv" &&
        "$venv/bin/python" -m pip install --no-compile --quiet --disable-pip-version-check -r "$1" && touch "$venv/.stamp"; } ||
        sorry "$name"
}

node_caller() {
    node=.venv-callers-node
    fresh "$node" tests/callers/package.json && return
    echo "setting up a caller ($node) …"
    rm -rf "$node" && mkdir "$node" && cp tests/callers/package.json "$node/"
    { npm install --prefix "$node" --silent --no-audit --no-fund --no-package-lock && touch "$node/.stamp"; } ||
        sorry "the Node SDK"
}

# Node's drivers of Postgres. The stand-in for Prisma's schema engine is never started: no migration is run.
node_drivers() {
    drivers=.venv-callers-drivers
    fresh "$drivers" tests/callers/drivers/package.json && return
    echo "setting up drivers ($drivers) …"
    rm -rf "$drivers" && cp -R tests/callers/drivers "$drivers"
    { npm install --prefix "$drivers" --silent --no-audit --no-fund --no-package-lock &&
        (cd "$drivers" && PRISMA_SCHEMA_ENGINE_BINARY=/bin/true npx --no-install prisma generate >/dev/null 2>&1) &&
        touch "$drivers/.stamp"; } || sorry "Node's drivers of Postgres"
}

for list in tests/callers/*.txt; do
    python_caller "$list" &
done
if command -v node >/dev/null && command -v npm >/dev/null; then
    node_caller &
    node_drivers &
else
    sorry "the Node SDK (there is no node or no npm)"
fi
wait
