# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt

.PHONY: demo test check bench faults docs install install-light clean

demo: $(VENV)/user.done  ## the main job, end to end, on the synthetic scroll
	$(BIN)/inkzarr demo demo

test: check $(VENV)-light/light.done  ## all checks and tests; only those that need a CUDA device are left out
	$(BIN)/python -m pytest -m "not gpu"
	$(VENV)-light/bin/python -m pytest tests/test_light.py

check: $(VENV)/dev.done  ## seconds: format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.done $(VENV)/peers.done  ## ours beside the peers, in one run
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.labels

docs: $(VENV)/dev.done  ## the code blocks of README and docs, executed
	$(BIN)/python -m pytest tests/test_docs.py

# torch comes first and alone, so that no other package pulls in another build of it
$(VENV)/torch.done:
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/user.done: $(VENV)/torch.done pyproject.toml constraints.txt
	$(PIP) --editable ".[all]"
	touch $@

$(VENV)/dev.done: $(VENV)/torch.done pyproject.toml constraints.txt
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps pytorch3dunet==1.9.6
	touch $@

$(VENV)/peers.done: $(VENV)/dev.done
	$(PIP) --no-deps monai==1.6.1
	touch $@

# an installation as on a cluster that prepares labels: no torch
$(VENV)-light/light.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-light
	$(VENV)-light/bin/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt \
		--editable . pytest pytest-timeout hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-light demo
