# Two commands: `make book` and `make test`. Everything else: `make help`.
#
# All paths are relative: make cannot hold a space in a target, and the folder above may have one.
# The work itself is in scripts/, so that a machine without make runs the same lines (README).

PYTHON ?= python3
PY     := .venv/bin/python
READY  := .venv/.ready
PRESET ?= cpu
LABS   ?=
STAGES ?=
PAGES  ?=
JOBS   ?= 2
PORT   ?= 8000

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup book draft test labs ledger-check bench audit serve format repository clean distclean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

# The stamp is written last and removed first: an install that was broken off leaves none, and
# leaves .venv/.installing instead, whose half-written packages pip would take for whole ones.
$(READY): constraints.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "minidiff needs Python 3.11 or newer; \"$(PYTHON)\" is:"; "$(PYTHON)" --version; \
	  echo "Name another one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v < (3, 14) or print("note: the pins are tested on Python 3.11 to 3.13")'
	@rm -f $(READY)
	@if [ -e .venv/.installing ]; then echo "the last install was broken off: starting anew"; rm -rf .venv; fi
	"$(PYTHON)" -m venv .venv
	@touch .venv/.installing
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(PY) -m pip --disable-pip-version-check check
	@rm -f .venv/.installing
	@touch $(READY)

setup: $(READY) ## .venv with the pinned packages (the other targets call it)

book: $(READY) ## build the book, warnings are errors; prints where index.html lies
	@$(PY) scripts/build_book.py

draft: $(READY) ## rebuild only the pages that changed (for writing; checks less than `make book`)
	@$(PY) scripts/build_book.py --draft

test: $(READY) ## lint, types, tests, labs at PRESET=smoke, nbval, strict book, maths; STAGES="tests book" picks
	@$(PY) scripts/check.py $(STAGES)

labs: $(READY) ## execute the labs again: PRESET=cpu writes notebooks/*.ipynb, *.json; LABS=05_swiss_roll picks
	@$(PY) scripts/run_notebooks.py --preset "$(PRESET)" --jobs "$(JOBS)" $(LABS)

ledger-check: $(READY) ## scale each function tied to an equation by 1.01: its test must fail
	@$(PY) scripts/ledger_check.py

bench: $(READY) ## side by side with peers: ratios in one process
	@set -e; for b in benchmarks/*.py; do echo "== $$b"; OMP_NUM_THREADS=1 $(PY) "$$b"; done

audit: $(READY) ## look at pages in Chromium: light, dark, phone; PAGES="book/intro.html" picks
	@$(PY) scripts/build_book.py
	@$(PY) scripts/audit.py $(PAGES)

serve: book ## the book on this machine: PORT=8000
	@echo "http://localhost:$(PORT) (Ctrl-C ends it)"
	@$(PY) -m http.server --bind 127.0.0.1 --directory _build/html "$(PORT)"

format: $(READY) ## let ruff lay out the code and repair what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

repository: ## write the repository's home everywhere: URL=https://github.com/you/minidiff TAG=main
	@"$(PYTHON)" scripts/set_repository.py --url "$(URL)" --tag "$(TAG)"

clean: ## remove what was built (the environment stays)
	rm -rf _build .hypothesis

distclean: clean ## remove the environment as well
	rm -rf .venv node_modules minidiff.egg-info
