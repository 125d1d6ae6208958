# `make demo` and `make test` set themselves up: a machine needs make and Python >= 3.10 with venv and pip.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint compat-sample wheel-check test-oldest clean

demo: .venv/ready
	$(BIN)/fxprune run model_zoo/recipes/digits-resnet20.toml model_zoo/recipes/digits-resnet20-thin.toml --force

test: .venv/ready
	$(BIN)/python -m pytest -n 2

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# a small model of every module of timm and of every family of torchvision; a few of them to the end.
# The largest, detectors, hold 7 GiB.
compat-sample: .venv/ready
	rm -f out/compat-sample.jsonl out/compat-sample-onnx.jsonl
	$(BIN)/fxprune compat $$(cat model_zoo/compat/sample.txt) --jobs 2 --memory 8 -o out/compat-sample.jsonl
	$(BIN)/fxprune compat 'timm:test_*' --stage onnx --jobs 2 -o out/compat-sample-onnx.jsonl

# the wheel as users get it: built in isolation, its metadata checked, installed alone, run outside of the checkout
wheel-check: .venv/ready
	rm -rf dist build .venv-wheel
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet uv
	.venv-wheel/bin/uv pip install --python .venv-wheel/bin/python --constraint constraints.txt dist/*.whl
	cd / && $(CURDIR)/.venv-wheel/bin/fxprune --version
	cd / && $(CURDIR)/.venv-wheel/bin/fxprune run $(CURDIR)/model_zoo/recipes/digits-resnet20.toml \
		--output $(CURDIR)/out/wheel-check --force
	rm -rf .venv-wheel build

# the oldest versions that pyproject.toml allows, in an environment of its own
test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python benchmarks/robustness.py suite --json out/oldest.json

.venv-oldest/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip install --python .venv-oldest/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

# uv resolves and downloads many times faster than pip, which stands in where it cannot be installed
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv \
		&& $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' \
		|| $(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-wheel .venv-oldest dist out
