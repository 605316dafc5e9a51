# Every target builds the environment it needs first; `make VENV=path ...` uses (or builds) one elsewhere: torch with its
# libraries takes 5.4 GB, so share it between checkouts.
VENV ?= .venv
PYTHON ?= python3
REPORT ?= all
# Of the packages that this checkout needs; another checkout sharing VENV installs itself anew when its turn comes.
STAMP := $(VENV)/installed-$(shell cat pyproject.toml | cksum | cut -d' ' -f1)-$(shell pwd | cksum | cut -d' ' -f1)
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help bench demo test test-slow faults reproduce quick wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# --without-pip and pip's --python need neither Debian's python3-venv nor a pip inside the environment.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	@echo "installing svdo and what it needs into $(VENV) (torch is large: minutes the first time)"
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check -e '.[dev,joblib,onnx,plot]'
	@rm -f $(VENV)/installed-*
	@touch $@

bench: $(STAMP)  ## time training steps and the data feed; writes results/benchmarks/
	$(BIN)/python scripts/bench.py

demo: $(STAMP)  ## train LeNet-5 with Sparse VD on MNIST, the short way
	$(BIN)/svdo-run model=lenet5 method=sparsevd train=fast train.epochs=20

test: $(STAMP)  ## lint, type check and the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --maxprocesses 4

test-slow: $(STAMP)  ## the slow tests and those that fetch data
	$(BIN)/pytest -m 'slow or network'

faults: $(STAMP)  ## kills, power cuts (as root), damaged and foreign files, closed streams, at random: all must end right
	$(BIN)/python scripts/faults.py

reproduce: $(STAMP)  ## plan and train what is missing, check, render: every table, or REPORT=mnist
	$(BIN)/svdo-report plan $(REPORT)
	$(BIN)/svdo-report run $(REPORT); status=$$?; $(BIN)/svdo-report render all && \
	$(BIN)/python scripts/update_readme.py && $(BIN)/svdo-report check $(REPORT) && exit $$status

quick: $(STAMP)  ## every table and figure on toy settings, into build/quick: shows that all works, and nothing else
	rm -rf build/quick
	$(BIN)/svdo-report run all --quick; status=$$?; $(BIN)/svdo-report render all --quick && exit $$status

wheel: $(STAMP)  ## build dist/*.whl
	$(BIN)/python -m build --wheel --installer pip --quiet .

clean:  ## remove what building and testing left, never results
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
