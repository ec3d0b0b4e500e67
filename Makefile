# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
DEMO_ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadfile
BENCH_ARGS ?=
GPU_ARGS ?=
SEEDS ?= 0 1 2 3 4
EVERYWHERE := not gpu and not network

TEST := PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-seeds coverage nightly real bench gpu gates site clean

help:  ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready  ## make .venv with f3rm and all that development needs

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] in ((3, 11), (3, 12)) else "constraints.txt is for Python 3.11 and 3.12: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	@# The name of this project before it was f3rm-fields: both would bring the package f3rm.
	@$(BIN)/python -m pip uninstall -qq --yes f3rm
	@echo "Installing f3rm and what it needs: about 3 GB to download, a few minutes."
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@# Open3D and ns-render need libusb and ffmpeg: taken from wheels where the system has none.
	@$(BIN)/python -c 'import open3d' 2>/dev/null || ln -sf "$$($(BIN)/python -c 'import libusb_package; print(libusb_package.get_library_path())')" "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libusb-1.0.so.0"
	@command -v ffmpeg >/dev/null || ln -sf "$$($(BIN)/python -c 'import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())')" $(BIN)/ffmpeg
	@touch $@

demo: $(VENV)/.ready  ## train a small feature field on a generated scene, or on DATA=folder
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/f3rm demo $(if $(DATA),--data $(DATA)) $(DEMO_ARGS)

test: $(VENV)/.ready  ## run the tests
	$(TEST) $(PYTEST_ARGS)

test-seeds: $(VENV)/.ready  ## run the tests that train with five seeds, with numba and without
	@status=0; for hidden in "" $(abspath tests/without_numba); do for seed in $(SEEDS); do \
	  echo "== train seed $$seed$${hidden:+, without numba}"; \
	  PYTHONPATH="$$hidden$${PYTHONPATH:+:$$PYTHONPATH}" F3RM_TRAIN_SEED=$$seed \
	    $(TEST) $(PYTEST_ARGS) -m "trains and $(EVERYWHERE) and not nightly" || status=1; \
	done; done; exit $$status

coverage: $(VENV)/.ready  ## run the tests with coverage; fails under 90 %
	$(BIN)/coverage erase
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

nightly: $(VENV)/.ready  ## run the heavy checks, then test-seeds and coverage; hours
	$(TEST) $(PYTEST_ARGS) -m "nightly and $(EVERYWHERE)"
	$(MAKE) test-seeds
	$(MAKE) coverage

real: $(VENV)/.ready  ## find things in photographs by real features; DATA=folder with boxes.json
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[real]"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -W ignore -m tools.real $(or $(DATA),$(F3RM_REAL_DATA))

bench: $(VENV)/.ready  ## measure this machine and write docs/benchmarks.md's tables; 20 minutes
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python benchmarks/suite.py $(BENCH_ARGS)

gpu: $(VENV)/.ready  ## check and measure a GPU in seven minutes; results in outputs/gpu
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -W ignore benchmarks/gpu.py $(GPU_ARGS)

gates: $(VENV)/.ready  ## check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pyright

site: $(VENV)/.ready  ## build the documentation in outputs/site; fails at a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W ignore -m mkdocs build --strict

clean:  ## remove .venv and outputs
	rm -rf $(VENV) outputs
