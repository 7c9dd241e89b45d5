# `make run` and `make test` set up what they need; nothing else has to be installed but Python 3.11+.
# All paths are relative, so the folder may have spaces in its name.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test check lint types bench bench-litellm prices readme screenshots callers model setup
.PHONY: loadtest soak incidents fuzz dbsuites realapps clean schema lock dist sbom release-check pins oldest

# The first Python that is new enough, python3 preferred.
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP := -m pip install --quiet --disable-pip-version-check --no-warn-script-location
STAMP := .stamp

help:
	@echo 'make run             Outrigger in front of the demo app'
	@echo "make run APP='…'     in front of your own, e.g. APP='uvicorn main:app --port \$$\$$PORT'"
	@echo 'make test            everything, and our own code on the newest Python here too'
	@echo 'make check           lint, types and make test'
	@echo 'make bench           the figures of docs/figures.md, beside peers that it installs; one part: PART=bench_requests'
	@echo 'make prices          the price table, from the genai-prices of requirements-dev.txt'
	@echo "make bench-litellm   those of calls out, LiteLLM's proxy among the peers"
	@echo "make schema          schema, manual page, completions, after a key or a command was added or described anew"
	@echo 'make lock            the locks with hashes, after a dependency was changed; UPGRADE=1 for the newest'
	@echo 'make oldest          our own tests on the oldest versions that requirements.txt allows'
	@echo 'make dist            wheel, source archive and outrigger.lock; make sbom: what is in it, as CycloneDX'
	@echo 'make release-check   whether this can be published; make pins: whether actions are pinned to what their tags name'
	@echo 'make loadtest        100 users at their peak, with a verdict; make soak SOAK=8h: for as long as you like'
	@echo 'make incidents       what goes wrong, on purpose; writes the table in deploy/INCIDENTS.md'
	@echo 'make fuzz            random calls, and the ledger against the vendors own books; FUZZ=100000 of them'
	@echo "make dbsuites SUITES=DIR: the drivers' own test suites, checked out in DIR, direct and through the database door"
	@echo 'make realapps        apps of others beside themselves behind the gateway (ONLY=, APPS=DIR); writes docs/realapps.md'
	@echo 'make readme          the tables of docs/calls-out.md that are what a test saw'
	@echo 'make screenshots     its pictures of the dashboard; needs Chromium'

.outrigger/$(STAMP): requirements.lock
	$(call need_python)
	@echo 'setting up the gateway (.outrigger) …'
	@$(PYTHON) -m venv .outrigger && .outrigger/bin/python $(PIP) --require-hashes -r requirements.lock && touch $@

.demo/$(STAMP): deploy/demo/requirements.txt
	$(call need_python)
	@echo 'setting up the demo app (.demo) …'
	@$(PYTHON) -m venv .demo && .demo/bin/python $(PIP) -r deploy/demo/requirements.txt && touch $@

.venv/$(STAMP): requirements.txt requirements-dev.txt deploy/demo/requirements.txt
	$(call need_python)
	@echo 'setting up the tools (.venv) …'
	@$(PYTHON) -m venv .venv && .venv/bin/python $(PIP) -r requirements-dev.txt && touch $@

setup: .outrigger/$(STAMP) .demo/$(STAMP)

run: setup
	@exec .demo/bin/python deploy/demo/run.py --gateway .outrigger/bin/python --app "$(APP)"

lint: .venv/$(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/$(STAMP)
	.venv/bin/mypy

test: .venv/$(STAMP) setup callers
	@sh tests/matrix.sh

.venv/bin/python:
	@$(MAKE) --no-print-directory .venv/$(STAMP)

callers: .venv/$(STAMP)
	@sh tests/callers/setup.sh

model: .venv/$(STAMP)
	@sh tests/callers/model.sh

readme: .venv/$(STAMP) callers
	@OUTRIGGER_WRITE_README=1 .venv/bin/python -m pytest tests/wire/egress/test_egress_callers.py

screenshots: .venv/$(STAMP) setup
	@PYTHONPATH=.:tests/helpers .venv/bin/python tests/screenshots.py

check: lint types test

# Peers are set up for those parts that are beside some.
bench: .venv/$(STAMP) setup
	@case '$(PART)' in ''|*requests*|*bytes*|*calls*|*streams*|*store*) sh tests/bench/peers.sh;; esac
	@PYTHONPATH=. .venv/bin/python tests/bench/run.py $(PART)

prices: .venv/$(STAMP)
	@.venv/bin/python deploy/prices.py

# What is made of the code: the schema of the policy, the manual page, completions. Each is written whole or not at all.
schema: | .venv/bin/python
	@mkdir -p deploy/shell
	@set -e; for pair in schema:config/outrigger.schema.json man:deploy/shell/outrigger.1 \
	    'completion bash:deploy/shell/outrigger' 'completion zsh:deploy/shell/_outrigger' \
	    'completion fish:deploy/shell/outrigger.fish'; do \
	    .venv/bin/python -m proxy $${pair%%:*} > .made.new || { rm -f .made.new; exit 1; }; mv .made.new $${pair##*:}; \
	done

# What is locked stays; make lock UPGRADE=1 takes the newest that requirements.txt allows.
lock: | .venv/bin/python
	@.venv/bin/python deploy/release/lock.py $(if $(UPGRADE),--upgrade)

# The oldest versions that requirements.txt allows, with our own code's tests on them.
.venv-oldest/$(STAMP): requirements.txt requirements-dev.txt | .venv/bin/python
	@echo 'setting up the oldest dependencies (.venv-oldest) …'
	@.venv/bin/python -m venv --clear .venv-oldest
	@.venv/bin/python -m uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct -r requirements.txt
	@.venv-oldest/bin/python $(PIP) -r requirements-dev.txt && touch $@

oldest: .venv-oldest/$(STAMP)
	@.venv-oldest/bin/python -m pytest tests/unit tests/wire/egress/test_egress_calls.py \
	    tests/wire/ingress/test_relay_http.py tests/wire/postgres/test_postgres_life.py -n 2

# The time of the last commit in the archives: the same commit makes the same wheel.
dist: | .venv/bin/python
	@rm -rf dist build
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 315532800) \
	    .venv/bin/python -m build --no-isolation --outdir dist . >/dev/null
	@rm -rf build outrigger.egg-info
	@.venv/bin/python -m twine check --strict dist/*
	@.venv/bin/python deploy/release/kit.py dist

sbom: | .venv/bin/python
	@mkdir -p dist
	@.venv/bin/python deploy/release/sbom.py dist

release-check: dist sbom
	@.venv/bin/python deploy/release/check.py dist $(if $(TAG),--tag "$(TAG)")

# Asks the actions' repositories.
pins: | .venv/bin/python
	@.venv/bin/python deploy/release/pins.py

bench-litellm:
	@$(MAKE) --no-print-directory bench PART=bench_calls

.venv-locust/$(STAMP): deploy/loadtest/requirements.txt
	$(call need_python)
	@echo 'setting up Locust (.venv-locust) …'
	@$(PYTHON) -m venv .venv-locust && .venv-locust/bin/python $(PIP) -r $< && touch $@

loadtest: setup .venv-locust/$(STAMP)
	@.demo/bin/python deploy/loadtest/run.py --gateway .outrigger/bin/python --locust .venv-locust/bin/locust

SOAK = 1h
soak: setup .venv-locust/$(STAMP)
	@.demo/bin/python deploy/loadtest/run.py --gateway .outrigger/bin/python --locust .venv-locust/bin/locust --for $(SOAK)

incidents: .venv/$(STAMP)
	@PYTHONPATH=. .venv/bin/python tests/incidents/table.py $(ONLY)

FUZZ = 100000
fuzz: .venv/$(STAMP)
	@OUTRIGGER_FUZZ_CALLS=$(FUZZ) .venv/bin/python -m pytest -q -s -p no:cacheprovider --timeout 0 tests/wire/egress/test_money_fuzz.py

.venv-suites/$(STAMP): tests/suites/requirements.txt
	$(call need_python)
	@echo "setting up the database drivers' suites (.venv-suites) …"
	@$(PYTHON) -m venv .venv-suites && .venv-suites/bin/python $(PIP) -r $< && touch $@

dbsuites: .venv/$(STAMP) .venv-suites/$(STAMP)
	@test -n "$(SUITES)" || { echo 'make dbsuites SUITES=DIR, where DIR has the repositories asyncpg, psycopg, …' >&2; exit 2; }
	@PYTHONPATH=.:tests/helpers .venv/bin/python tests/suites/run.py "$(SUITES)" --python .venv-suites/bin/python --only "$(ONLY)"

# One app at a time: make realapps ONLY=streamlit. A folder of your own: make realapps APPS=../my-app.
realapps: .venv/$(STAMP)
	@ONLY='$(ONLY)' APPS='$(APPS)' .venv/bin/python tests/realapps/run.py

clean:
	rm -rf .outrigger .demo .venv .venv-* .realapps var

define need_python
@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed, and none is on PATH' >&2; exit 1; }
endef
