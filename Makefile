# Everything a newcomer needs: `make serve` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
DEMO ?= examples/demo_model/checkpoints/mistral-mxfp4

BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find engines/cpu/csrc -type f 2>/dev/null)

.PHONY: serve test fault-test check format cpp-test interop image-test chart-files lock clean

# Serve the built-in demo checkpoint on port $(PORT).
serve: $(VENV)/.installed
	@echo
	@echo "When the server says that it is ready, ask it something from another terminal:"
	@echo
	@echo "  curl http://127.0.0.1:$(PORT)/v1/chat/completions -H 'Content-Type: application/json' \\"
	@echo "    -d '{\"model\": \"nybble-demo\", \"messages\": [{\"role\": \"user\", \"content\": \"What is machine learning?\"}], \"max_tokens\": 64}'"
	@echo
	$(BIN)/nybble serve $(DEMO) --served-model-name nybble-demo --port $(PORT)

# The whole test-suite.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# Processes that are killed, starved and lied to, the long drills included.
fault-test: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/faults -m "faults or long"

# Formatting, lint, types, the rule of who imports whom.
check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	find engines/cpu/csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find engines/cpu/csrc -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

# The kernels' own tests under AddressSanitizer and UndefinedBehaviorSanitizer; and no instruction set leaks into another's
# objects, which takes an optimised build to say.
cpp-test:
	cmake -S . -B build/sanitize -DNYBBLE_PYTHON=OFF -DNYBBLE_KERNEL_TESTS=ON -DNYBBLE_SANITIZE=ON
	cmake --build build/sanitize --parallel 2
	build/sanitize/kernel_tests
	cmake -S . -B build/release -DNYBBLE_PYTHON=OFF
	cmake --build build/release --parallel 2
	scripts/check_isa_symbols.sh build/release

# Build the container image without Docker, look into it and run it without a network (root, buildah, debootstrap).
image-test:
	$(PYTHON) scripts/image_test.py

# Write the dashboard, and what the Helm chart takes from elsewhere in the project.
chart-files: $(VENV)/.installed
	PYTHONPATH=. $(BIN)/python scripts/grafana_dashboard.py
	PYTHONPATH=. $(BIN)/python scripts/chart_files.py

# Renew the versions and hashes that the images are built from.
LOCK := $(BIN)/uv pip compile --universal --python-version 3.12 --generate-hashes --no-emit-index-url \
  --no-annotate --no-header --quiet --upgrade
lock: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) pyproject.toml --extra otel --output-file deploy/docker/requirements.txt
	$(LOCK) deploy/docker/build-requirements.in --output-file deploy/docker/build-requirements.txt

# Optional: our checkpoints in transformers + compressed-tensors (torch, in an environment of its own), and their
# logits beside ours. Further checkpoints: make interop CHECKPOINTS="DIR ...".
INTEROP_VENV ?= .venv-interop
interop: $(VENV)/.installed $(INTEROP_VENV)/.installed
	PYTHONPATH=. $(BIN)/python tests/interop/check_transformers.py \
	  --python $(abspath $(INTEROP_VENV))/bin/python $(CHECKPOINTS)

$(INTEROP_VENV)/.installed: tests/interop/requirements.txt
	$(PYTHON) -m venv $(INTEROP_VENV)
	$(INTEROP_VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group test --group lint --group deploy
	touch $@

clean:
	rm -rf $(VENV) build dist
