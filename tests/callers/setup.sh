#!/bin/sh
# Environments of their own for callers that apps use: older SDKs and other libraries would quarrel in .venv.
# One a file here, NAME.txt for pip and package.json for npm; what cannot be set up is said, and its tests skip.
cd "$(dirname "$0")/../.." || exit 1

fresh() { [ -e "$1/.stamp" ] && [ -z "$(find "$2" -newer "$1/.stamp")" ]; }
sorry() { echo "$1 could not be set up; tests that need it will say so" >&2; }

for list in tests/callers/*.txt; do
    name=$(basename "$list" .txt)
    venv=.venv-callers-$name
    fresh "$venv" "$list" && continue
    echo "setting up a caller ($venv) …"
    rm -rf "$venv"
    { .venv/bin/python -m venv "$venv" &&
        "$venv/bin/python" -m pip install --no-compile --quiet --disable-pip-version-check -r "$list" && touch "$venv/.stamp"; } ||
        sorry "$name"
done

node=.venv-callers-node
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    sorry "the Node SDK (there is no node or no npm)"
elif ! fresh "$node" tests/callers/package.json; then
    echo "setting up a caller ($node) …"
    rm -rf "$node" && mkdir "$node" && cp tests/callers/package.json "$node/"
    { npm install --prefix "$node" --silent --no-audit --no-fund --no-package-lock && touch "$node/.stamp"; } ||
        sorry "the Node SDK"
fi

# Node's drivers of Postgres. The stand-in for Prisma's schema engine is never started: no migration is run.
drivers=.venv-callers-drivers
if command -v node >/dev/null && command -v npm >/dev/null && ! fresh "$drivers" tests/callers/drivers/package.json; then
    echo "setting up drivers ($drivers) …"
    rm -rf "$drivers" && cp -R tests/callers/drivers "$drivers"
    { npm install --prefix "$drivers" --silent --no-audit --no-fund --no-package-lock &&
        (cd "$drivers" && PRISMA_SCHEMA_ENGINE_BINARY=/bin/true npx --no-install prisma generate >/dev/null 2>&1) &&
        touch "$drivers/.stamp"; } || sorry "Node's drivers of Postgres"
fi
