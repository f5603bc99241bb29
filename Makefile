# The commands of the README. Each makes .venv if it is not there and can be run again.
PYTHON ?= python3
EXLTUI := .venv/bin/exltui

.PHONY: chat test setup lint types wheel screenshots clean help

chat: ## set everything up, get a first model, open the app
	@test -t 0 -a -t 1 -a -t 2 || { echo "make chat opens a full-screen app and needs a terminal; try: $(EXLTUI) generate --help" >&2; exit 2; }
	@$(PYTHON) scripts/bootstrap.py --starter
	@$(EXLTUI)

test: ## set everything up and run the tests
	@$(PYTHON) scripts/bootstrap.py --test
	@.venv/bin/python -m pytest -n auto

setup: ## only set up
	@$(PYTHON) scripts/bootstrap.py

lint: ## ruff, as the checks run it
	@$(PYTHON) scripts/bootstrap.py --dev
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types: ## mypy, as the checks run it
	@$(PYTHON) scripts/bootstrap.py --dev
	@.venv/bin/mypy

wheel: ## build the wheel and try it in a clean environment outside the checkout
	@$(PYTHON) scripts/bootstrap.py --dev
	@.venv/bin/python scripts/check_wheel.py

screenshots: ## draw the README's pictures from the real app
	@$(PYTHON) scripts/bootstrap.py --dev
	@.venv/bin/python scripts/screenshot.py

clean: ## remove the virtual environment and what was built
	rm -rf .venv build dist *.egg-info .test-models

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14
