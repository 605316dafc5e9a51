# Every target builds the environment it needs first; `make VENV=path ...` uses (or builds) one elsewhere: torch with its
# libraries takes 5.4 GB, so share it between checkouts.
VENV ?= .venv
PYTHON ?= python3
REPORT ?= all
# Of the packages that this checkout needs; another checkout sharing VENV installs itself anew when its turn comes.
STAMP := $(VENV)/installed-$(shell cat pyproject.toml | cksum | cut -d' ' -f1)-$(shell pwd | cksum | cut -d' ' -f1)
DOCS_STAMP := $(STAMP)-docs
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help bench demo docs test test-slow faults reproduce quick wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# --without-pip and pip's --python need neither Debian's python3-venv nor a pip inside the environment.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	@echo "installing svdo and what it needs into $(VENV) (torch is large: minutes the first time)"
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check -e '.[dev,joblib,onnx,plot]'
	@rm -f $(VENV)/installed-*
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

bench: $(STAMP)  ## time training steps and the data feed; writes results/benchmarks/
	$(BIN)/python scripts/bench.py

demo: $(STAMP)  ## train a sparse LeNet-300-100 on MNIST in a minute: its table, a picture, its files in build/demo
	$(BIN)/svdo-run model=lenet300 method=sparsevd train=fast seed=5 runtime.snapshots=22 results_dir=build/demo
	@echo
	@$(BIN)/python -m svdo.report.picture build/demo/runs/lenet300-*
	@echo
	@echo "As a C file: $(BIN)/svdo-export $$(echo build/demo/runs/lenet300-*) --to c"
	@echo "Its files are in $$(echo build/demo/runs/lenet300-*). LeNet-5, in a quarter of an hour:"
	@echo "$(BIN)/svdo-run model=lenet5 method=sparsevd train=fast seed=5 results_dir=build/demo"

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

# README, docs/ and results/ go in as they lie, so that a link that works on a forge works on the site, and the other way round.
docs: $(DOCS_STAMP)  ## build the documentation with its API reference into build/site; a broken link fails
	rm -rf build/pages build/site
	mkdir -p build/pages
	tar -cf - $$(git ls-files README.md CHANGELOG.md CONTRIBUTING.md LICENSE docs svdo/mnist/NOTICE.md \
		'results/*.md' 'results/tables' 'results/figures/*.png' 'results/figures/*.gif' results/benchmarks/cpu.md CITATION.cff) | tar -xf - -C build/pages
	$(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

wheel: $(STAMP)  ## build dist/*.whl
	$(BIN)/python -m build --wheel --installer pip --quiet .

clean:  ## remove what building and testing left, never results
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
