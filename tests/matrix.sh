#!/bin/sh
# All tests on .venv's Python; those of our own code and its protocols on the newest one that is here too (programs
# that call us have versions of their own, and what lies between the two has shown nothing that they had not).
# Four at once: most tests wait.
set -e

# A Python of this version that runs and can make environments: a shim on PATH may do neither.
find_python() {
    for candidate in "$(command -v "python$1" || true)" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
        if [ -x "$candidate" ] && "$candidate" -c 'import ensurepip, ssl' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

mine=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
newest=$mine
for version in 3.12 3.13 3.14; do
    [ "${version#3.}" -le "${newest#3.}" ] || [ -z "$(find_python "$version")" ] || newest=$version
done

venv=".venv-$newest"
set_up_newest() {
    if [ ! -e "$venv/.stamp" ] || [ -n "$(find requirements.txt requirements-dev.txt -newer "$venv/.stamp")" ]; then
        "$(find_python "$newest")" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
        touch "$venv/.stamp"
    fi
}

if [ "$newest" != "$mine" ]; then
    set_up_newest &  # beside the first tests
    setting_up=$!
fi
echo "── Python $mine: everything"
.venv/bin/python -m pytest tests -n 4 --dist worksteal
[ "$newest" != "$mine" ] || exit 0

wait "$setting_up"
echo "── Python $newest: our own code and its protocols"
cd tests/wire
set -- ingress/test_relay_http.py ingress/test_relay_tunnel.py gateway/test_gateway_life.py egress/test_egress_calls.py \
    egress/test_money_calls.py ledger/test_ledger_gateway.py postgres/test_postgres_life.py
cd ../..
for file in "$@"; do
    shift
    set -- "$@" "tests/wire/$file"
done
"$venv/bin/python" -m pytest tests/unit "$@" -n 4 --dist worksteal
