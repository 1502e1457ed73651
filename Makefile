# Two commands for a person: `make demo` and `make test`. Each creates .venv from nothing: `demo` with what drawing
# needs, `test` with everything.
#
#   PYTHON=python3.12 make demo         another interpreter (3.11 or newer)
#   TORCH=torch make demo               the newest torch build instead of the pinned one (then CONSTRAINTS= too)
#   make demo PROMPT="a blue fish"      another picture

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
	{ echo $$p; break; }; done)
endif
TORCH ?= torch==2.13.0
CONSTRAINTS ?= -c constraints.txt
PROMPT ?= three red balloons over a green hill
OUTPUT ?= outputs/
SEED ?= 2

BIN := .venv/bin
STAMP := .venv/.installed
DRAWS := .venv/.draws
TORCH_FIRST = test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(CONSTRAINTS) $(TORCH)

.DEFAULT_GOAL := help
.PHONY: help install python demo test fuzz check wheel docs format cold-start clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install everything into it

python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv on PATH" >&2; \
		echo "hint: install one, or name it: make demo PYTHON=/path/to/python3.11" >&2; exit 2; }

# torch goes first and alone: once the pinned build is there, nothing that needs "torch" fetches another one.
$(DRAWS): pyproject.toml constraints.txt | python
	@echo "Installing into .venv, once"
	$(TORCH_FIRST)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(CONSTRAINTS) -e .
	@touch $@

$(STAMP): pyproject.toml constraints.txt | python
	@command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || { \
		echo "error: no C compiler on PATH (llama-cpp-python is built from source)" >&2; exit 2; }
	$(TORCH_FIRST)
	$(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	@touch $(DRAWS) $@

demo: $(DRAWS) ## Make a picture with the shipped model; the last line is its path
	@picture=$$($(BIN)/lens gen "$(PROMPT)" --model nano --ar 16:9 --seed $(SEED) --output "$(OUTPUT)") && \
		echo "From here on: source $(BIN)/activate, then lens gen \"a blue fish\"" >&2 && echo "$$picture"

test: $(STAMP) ## Run the tests, as many at once as there are processors, at most four
	$(BIN)/python -m pytest -n logical --maxprocesses 4

MINUTES ?= 30
fuzz: $(STAMP) ## Give every parser of foreign bytes and the command line hostile inputs for MINUTES
	LENS_FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest -n logical --maxprocesses 2 -rP tests/fuzz

check: $(STAMP) ## Lint, format check, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

wheel: python ## Build the wheel, install it into an empty environment, and draw a picture from there
	rm -rf build/try && mkdir -p build/try
	$(PYTHON) -m venv build/try/venv
	build/try/venv/bin/python -m pip install --disable-pip-version-check --quiet $(CONSTRAINTS) $(TORCH)
	build/try/venv/bin/python -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir build/try .
	build/try/venv/bin/python -m pip install --disable-pip-version-check --quiet $(CONSTRAINTS) build/try/lens-*.whl
	cd build/try && PYTHONPATH= venv/bin/lens gen "a blue fish" --seed 2 --no-history -o fish.png

docs: $(STAMP) ## Render docs/ as pages in build/site
	$(BIN)/python -m lens_cli.reference > docs/commands.md
	$(BIN)/mkdocs build --strict --quiet

format: $(STAMP) ## Format the code in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cold-start: $(STAMP) ## Time `lens --help`, five times
	@for i in 1 2 3 4 5; do $(BIN)/python -c "import subprocess, time; t = time.perf_counter(); \
		subprocess.run(['$(BIN)/lens', '--help'], capture_output=True, check=True); \
		print(f'{(time.perf_counter() - t) * 1e3:.0f} ms')"; done

clean: ## Remove .venv and caches; pictures and runs stay
	rm -rf .venv .hypothesis .pytest_cache .ruff_cache build dist
