# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt

.PHONY: demo test check bench bench-quick audit faults fuzz docs browser clean

demo: $(VENV)/user.done  ## the main job, end to end, on the synthetic scroll
	$(BIN)/inkzarr demo demo

test: check browser $(VENV)-light/light.done  ## all checks and tests; only those that need a CUDA device are left out
	$(BIN)/python -m pytest -m "not gpu" --numprocesses auto --maxprocesses 4 --dist worksteal --durations 20
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks
	$(VENV)-light/bin/python -m pytest tests/test_light.py

check: $(VENV)/dev.done  ## seconds: format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/bench.done $(VENV)-peers/peers.done  ## ours beside the peers, in one run, into benchmarks/RESULTS.md
	INKZARR_PEERS=$(VENV)-peers $(BIN)/python -m benchmarks.report

bench-quick: $(VENV)/dev.done  ## the same in minutes, of sizes that prove nothing
	$(BIN)/python -m benchmarks.report --quick --out $(VENV)/quick.md

fuzz: $(VENV)/dev.done  ## ten minutes of damaged input for each parser
	$(BIN)/python -m tests.fuzz --minutes 10

audit: $(VENV)/dev.done  ## bandit, and known holes in what the container installs: pip-audit asks a service on the internet
	$(PIP) bandit pip-audit
	$(BIN)/bandit -q -c pyproject.toml -r inkzarr
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement requirements.txt

faults: $(VENV)/dev.done  ## the long form of tests/faults: 200 kills, and every other fault on every stage; prints a table
	$(BIN)/python -m tests.faults

docs: $(VENV)/dev.done  ## the site in docs/_build, its code blocks and notebooks executed, warnings are errors
	$(BIN)/python -m pytest tests/test_docs.py -k "not site"
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

browser:  ## Chromium, for the tests that look at pages; where it cannot be installed these tests say so
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy chromium; } \
		|| echo "no Chromium, and not root on Debian: install it by hand, or the browser tests fail"

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
	$(PIP) --no-deps pytorch3dunet==1.9.6 monai==1.6.1
	touch $@

$(VENV)/bench.done: $(VENV)/dev.done
	$(PIP) --editable ".[dev,bench]"
	touch $@

# an installation as on a cluster that prepares labels: no torch
$(VENV)-light/light.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-light
	$(VENV)-light/bin/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt \
		--editable . pytest pytest-timeout hypothesis
	touch $@

# vesuvius pins zarr < 3 and nnU-Net much else: peers have an environment of their own
$(VENV)-peers/peers.done: Makefile
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip --disable-pip-version-check install -qq torch==2.13.0
	$(VENV)-peers/bin/python -m pip --disable-pip-version-check install -qq torch==2.13.0 \
		nnunetv2==2.8 vesuvius==0.2.4
	$(VENV)-peers/bin/python -m pip --disable-pip-version-check install -qq --no-deps \
		pytorch3dunet==1.9.6 monai==1.6.1
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-light $(VENV)-peers demo
