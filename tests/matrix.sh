#!/bin/sh
# Every Python from 3.11 up that is here: all tests on .venv's and on the newest, tests without sockets on the rest.
set -e
all=".venv/bin/python"
mine=$($all -c 'import sys; print("%d.%d" % sys.version_info[:2])')

find_python() {
    command -v "python$1" 2>/dev/null && return
    for candidate in "$HOME"/.pyenv/versions/"$1".*/bin/python; do
        [ -x "$candidate" ] && { echo "$candidate"; return; }
    done
    return 0
}

newest=$mine
others=""
for version in 3.11 3.12 3.13 3.14; do
    [ "$version" = "$mine" ] && continue
    python=$(find_python "$version")
    [ -n "$python" ] || continue
    "$python" -c 'import ensurepip, ssl' 2>/dev/null || continue
    others="$others $version"
    newest=$version
done

echo "── Python $mine: everything"
$all -m pytest tests
for version in $others; do
    venv=".venv-$version"
    if [ ! "$venv/.stamp" -nt requirements-dev.txt ] || [ ! "$venv/.stamp" -nt requirements.txt ]; then
        echo "setting up Python $version ($venv) …"
        "$(find_python "$version")" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
        touch "$venv/.stamp"
    fi
    if [ "$version" = "$newest" ]; then
        echo "── Python $version: everything"
        "$venv/bin/python" -m pytest tests
    else
        echo "── Python $version: tests without sockets"
        "$venv/bin/python" -m pytest tests/unit
    fi
done
