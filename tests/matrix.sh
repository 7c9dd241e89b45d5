#!/bin/sh
# Every Python from 3.11 up that is here: all tests on .venv's, those of our own code on the newest too (the SDKs
# that call us have Pythons of their own), tests without sockets between. Four files at once: most of them wait.
set -e
mine=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# A Python of this version that runs and can make environments: a shim on PATH may do neither.
find_python() {
    for candidate in "$(command -v "python$1" || true)" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
        if [ -x "$candidate" ] && "$candidate" -c 'import ensurepip, ssl' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

others=""
newest=$mine
for version in 3.11 3.12 3.13 3.14; do
    if [ "$version" != "$mine" ] && [ -n "$(find_python "$version")" ]; then
        others="$others $version"
        newest=$version
    fi
done

echo "── Python $mine: everything"
.venv/bin/python -m pytest tests -n 4 --dist worksteal
for version in $others; do
    venv=".venv-$version"
    if [ ! -e "$venv/.stamp" ] || [ -n "$(find requirements.txt requirements-dev.txt -newer "$venv/.stamp")" ]; then
        echo "setting up Python $version ($venv) …"
        "$(find_python "$version")" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
        touch "$venv/.stamp"
    fi
    what=tests/unit
    [ "$version" != "$newest" ] || what=tests
    echo "── Python $version: $what"
    "$venv/bin/python" -m pytest "$what" -n 4 --dist worksteal \
        --ignore tests/wire/test_egress_callers.py --ignore tests/wire/test_egress_llmock.py
done
