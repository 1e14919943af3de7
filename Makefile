SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

export DEMO_NAME ?= demo
DEMO_PORT ?= 8188
UPSTREAMS ?= auto
# 0 runs the tasks without Mitogen.
MITOGEN ?= 1

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
export PATH := $(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)/tests
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
ifeq ($(MITOGEN),1)
export ANSIBLE_STRATEGY := mitogen_unpinned
endif

# The newest Python that really runs: version managers leave shims that only print an error.
PYTHON = $(shell for p in python3.13 python3.12 python3.11 python3 /usr/bin/python3; do \
  if "$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then echo "$$p"; break; fi; done)

.PHONY: help demo demo-break demo-destroy check test test-full browser bench docs lock setup
help: ## Show the commands
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(VENV)/locked

$(VENV)/locked: requirements.txt
	@python="$(PYTHON)"
	if [ -z "$$python" ]; then
	  echo "No Python 3.11 to 3.13 with venv found on PATH. On Debian or Ubuntu type: apt-get install python3-venv" >&2
	  exit 1
	fi
	echo "==> Setting up the control node in .venv with $$($$python --version) (about a minute) ..."
	rm -rf "$(VENV)"
	"$$python" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	touch "$@"

demo: setup ## Provision a sandbox host from nothing; ComfyUI at http://127.0.0.1:8188
	@python -m sandbox up $(DEMO_NAME) --port $(DEMO_PORT) --upstreams $(UPSTREAMS)
	echo "==> Provisioning the sandbox host: ansible-playbook site.yml (some minutes, the image build is the longest) ..."
	ansible-playbook --inventory .cache/sandbox/$(DEMO_NAME) site.yml
	echo "==> Verifying it: ansible-playbook playbooks/verify.yml (about a minute) ..."
	ansible-playbook --inventory .cache/sandbox/$(DEMO_NAME) playbooks/verify.yml
	echo
	echo "ComfyUI answers at http://127.0.0.1:$(DEMO_PORT) and has rendered an image; look at artifacts/$(DEMO_NAME)/verify.html."
	echo "Stop and remove it all: make demo-destroy"

demo-break: setup ## Do one damage to the demo, which make demo repairs: NAME=..., or none for a list
	@python -m demo_break $(NAME)

demo-destroy: setup ## Remove everything that the demo made
	@python -m sandbox destroy $(DEMO_NAME)
	rm -rf artifacts/$(DEMO_NAME)

check: setup ## Lint and unit tests, side by side
	@$(MAKE) --jobs 2 lint unit

.PHONY: lint unit
lint: setup
	@ruff format --check
	ruff check
	mypy
	yamllint --strict .
	codespell
	ansible-lint
	ansible-playbook --syntax-check site.yml playbooks/*.yml

# More processes than processors: many of these tests wait, for a run of Ansible or for a server.
unit: setup
	@pytest --quiet --numprocesses 4 --hypothesis-profile ci

test: check ## Everything that gates a change, without a GPU: check, then the scenarios
	@UPSTREAMS=standin python -m sandbox scenarios $(FULL)

test-full: export DRIFT_ROUNDS := all
test-full: FULL := --full
test-full: test browser bench ## Everything: test with all rounds of the drift matrix, what a browser shows, the benchmarks

# The stand-in for ComfyUI has no editor: the real one is taken where it can be had, and otherwise its tests are skipped.
browser: export UPSTREAMS := standin
browser: setup ## The workflow sidebar and the page of verify.yml in headless Chromium
	@upstream=https://github.com/Comfy-Org/ComfyUI.git
	if [ -z "$${COMFYUI_SOURCE_REPO:-}" ] && GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --quiet $$upstream HEAD; then
	  export COMFYUI_SOURCE_REPO=$$upstream
	fi
	python -m sandbox up browser
	ansible-playbook --inventory .cache/sandbox/browser site.yml
	ansible-playbook --inventory .cache/sandbox/browser playbooks/verify.yml
	pytest -rs tests/browser
	python -m sandbox down browser

bench: setup ## What a run costs that has nothing to do, and what a model and a build cost, as ratios
	@UPSTREAMS=standin python tests/bench/noop.py
	python tests/bench/models.py
	UPSTREAMS=standin python tests/bench/image.py

docs: setup ## Make the tables of variables in the roles' pages anew
	@for role in roles/*; do aar-doc "$$role" markdown; done

lock: setup ## Make the locks anew
	@uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --output-file requirements.txt requirements.in
	cd roles/model_store/files
	uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-emit-package hf-xet --custom-compile-command "make lock" --output-file huggingface_hub.txt huggingface_hub.in
	cd $(CURDIR)/roles/comfyui_image/files/locks
	for wanted in *.in; do
	  uv pip compile --quiet --upgrade --universal --python-version 3.12 --generate-hashes --no-emit-index-url --no-annotate \
	    --overrides base.txt $$(sed -nE 's/^([a-z]+) ;.*/--no-emit-package \1/p' base.txt) \
	    --custom-compile-command "make lock" --output-file "$${wanted%.in}.txt" "$$wanted"
	done
