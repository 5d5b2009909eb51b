# Two commands on a fresh machine: `make run` and `make test`. `make help` lists all.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
TORCH := torch==2.13.0
SYSTEM := $(shell uname -s)
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help install install-test browser opengl run test check format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/installed  ## everything the application needs, into .venv

$(VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
ifeq ($(SYSTEM),Darwin)
	$(PY) -m pip install --quiet -e ".[mlx]"
else
	@# Without an NVIDIA GPU, PyTorch's own CPU build; where its index cannot be reached, the release as it comes.
	@if command -v nvidia-smi >/dev/null 2>&1; then $(PY) -m pip install --quiet "$(TORCH)"; else \
	  $(PY) -m pip install --quiet --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
	    "$(TORCH)" 2>/dev/null || $(PY) -m pip install --quiet "$(TORCH)"; fi
	$(PY) -m pip install --quiet -e ".[pytorch]"
	@# insightface brings OpenCV with its windows, which need libGL; the headless build replaces it file by file.
	$(PY) -m pip install --quiet --force-reinstall --no-deps opencv-python-headless
endif
	@touch $@

install-test: install  ## and what the tests need
	@test -e $(VENV)/installed-test || { $(PY) -m pip install --quiet -e ".[pytorch,mlx,test]" && \
	  $(PY) -m pip install --quiet --force-reinstall --no-deps opencv-python-headless && touch $(VENV)/installed-test; }

browser:  ## Chromium for the browser tests
	@command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	  elif command -v sudo >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then \
	    sudo apt-get update -qq && sudo apt-get install -y -qq chromium >/dev/null; \
	  else $(PY) -m playwright install chromium; fi; }

opengl:  ## Mesa's OpenGL without a screen, which draws the mini world
	@test "$(SYSTEM)" != Linux || ldconfig -p | grep -q libEGL_mesa || { \
	  if [ "$$(id -u)" = 0 ]; then SUDO=; else SUDO=sudo; fi; \
	  $$SUDO apt-get update -qq && $$SUDO env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq libegl1 libgl1-mesa-dri >/dev/null; }

run: install  ## the page, with the mini model; OPTIONS="--help" for others
	$(PY) app.py $(OPTIONS)

test: install-test browser opengl  ## everything, the browser too
	$(PY) -m pytest

check: install-test  ## style and types of mistakes a machine can find
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: install-test  ## put the code in our style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the environment and what the tools left
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
