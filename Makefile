# `make demo` and `make test` set themselves up: a machine needs make and Python >= 3.10 with venv and pip.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint compat-sample clean

demo: .venv/ready
	$(BIN)/fxprune run model_zoo/recipes/digits-resnet20.toml model_zoo/recipes/digits-resnet20-thin.toml --force

test: .venv/ready
	$(BIN)/python -m pytest -n 2

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# a small model of every module of timm and of every family of torchvision; a few of them to the end
compat-sample: .venv/ready
	rm -f out/compat-sample.jsonl out/compat-sample-onnx.jsonl
	$(BIN)/fxprune compat $$(cat model_zoo/compat/sample.txt) --jobs 2 -o out/compat-sample.jsonl
	$(BIN)/fxprune compat 'timm:test_*' --stage onnx --jobs 2 -o out/compat-sample-onnx.jsonl

# uv resolves and downloads many times faster than pip, which stands in where it cannot be installed
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv \
		&& $(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' \
		|| $(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv out
