# `make help` lists what there is. Everything installs and fetches what it needs and is missing.
SHELL := /bin/bash

BUILD ?= release
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
SECONDS ?= 60
MINUTES ?= 30
SEEDS ?= 100000
MODEL ?=
FULL ?=
FROM ?= $(shell date +%s)000
ROWS ?=
ROUNDS ?=
AGAINST ?=
TARGETS ?=
CONFIG ?= config/ditserve.yaml
DOCKER ?= docker
DOCKER_FLAGS ?=

build_dir := build/$(BUILD)
installed := ditserve ditctl manual_pages $(if $(filter cuda,$(BUILD)),ditserve_cuda)
# What is made once and used again: LibTorch, the demo's checkpoint, Python environments.
CACHE := $(or $(DITSERVE_CACHE),build/cache)

version := $(shell sed -n 's/^project.ditserve VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)

# These may hold spaces: recipes take them from the environment, in quotes.
export PREFIX MODEL AGAINST CONFIG CACHE

# $(call build,PRESET,TARGETS,GROUPS): sets up with these groups of packages, configures and builds.
define build
scripts/setup $(3)
libtorch=$$(scripts/fetch-libtorch) $(if $(filter cuda,$(1)),&& CUDACXX=$$(scripts/fetch-nvcc) && export CUDACXX )\
  && cmake --preset $(1) -DLIBTORCH="$$libtorch"
cmake --build --preset $(1) --parallel $(JOBS) $(if $(2),--target $(2))
endef

# $(call with_references,COMMAND): what the references' environment needs. Where LIBTORCH is set that is not what LibTorch
# comes from: if it can't be had, as without a network, what is held against the references is skipped, and no more.
with_references = $(1)$(if $(LIBTORCH), || echo "*** no references: '$(firstword $(1))' failed. ***")

# $(call build_for_gpu,TARGETS): the CUDA device module with a LibTorch that has the CUDA libraries it runs on, which is that
# of the references' environment: a driver is all that must be there.
define build_for_gpu
$(call with_references,scripts/setup python)
$(call with_references,scripts/python-environment "$$CACHE/parity" scripts/parity/requirements.txt)
libtorch=$${LIBTORCH:-$$(echo "$$CACHE"/parity/lib/python3*/site-packages/torch)} && CUDACXX=$$(scripts/fetch-nvcc) \
  && export CUDACXX && cmake --preset cuda -B build/gpu -DLIBTORCH="$$libtorch"
cmake --build build/gpu --parallel $(JOBS) --target ditserve ditctl ditserve_cuda $(1)
endef

.PHONY: help
help:  ## Lists the targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Options: BUILD=dev|release|asan|tsan|cuda  MODEL=<a diffusers transformer folder>  CONFIG=<file>  JOBS=<n>"

.PHONY: run
run:  ## Starts a server, sends it one forward pass and shows what came of it; MODEL= for real weights
	$(call build,$(BUILD),ditserve ditctl)
	scripts/run-demo $(build_dir)/bin "$$CACHE/demo" "$$MODEL"

.PHONY: test
test:  ## Runs every test
	$(call build,$(BUILD),,python)
	scripts/python-environment "$$CACHE/inference" tests/system/inference/requirements.txt
	scripts/python-environment "$$CACHE/manifests" tests/manifests/requirements.txt
	scripts/python-environment "$$CACHE/python" tests/python/requirements.txt
	scripts/python-environment "$$CACHE/parity" scripts/parity/requirements.txt
	ctest --preset $(BUILD)

.PHONY: test-deploy
test-deploy:  ## Runs the tests of what deploys and watches servers, with heavy tools, in minutes
	$(call build,$(BUILD),ditserve ditctl tiny_checkpoint,python deploy)
	scripts/python-environment "$$CACHE/deploy" tests/deploy/requirements.txt
	DITSERVE_BIN=$(build_dir)/bin TINY_CHECKPOINT=$(build_dir)/tests/system/tiny_checkpoint \
	  PYTHONPATH=tests/system:deploy/grafana PYTHONDONTWRITEBYTECODE=1 \
	  "$$CACHE/deploy/bin/python" -m unittest discover --verbose --start-directory tests/deploy --pattern '*_test.py'

.PHONY: test-gpu
test-gpu:  ## Runs the tests that need a GPU on the machine's first one; says so where there is none
	@scripts/with-gpu $(MAKE) run-gpu-tests

.PHONY: run-gpu-tests
run-gpu-tests:
	$(call build_for_gpu,gpu_test)
	tests/gpu/run build/gpu/bin "$$CACHE/parity/bin/python"

.PHONY: serve
serve:  ## Runs a server in the foreground; MODEL=<a diffusers transformer folder>
	$(if $(MODEL),,$(error make serve needs MODEL=<a diffusers transformer folder>))
	$(call build,$(BUILD),ditserve)
	exec $(build_dir)/bin/ditserve --config "$$CONFIG" --model "qwen-image=$$MODEL"

.PHONY: bench
bench:  ## Measures every promise; FULL=1: 60 blocks too; ROWS=<some>; AGAINST=<a commit, or a build's bin>
	$(call build,$(BUILD),,python)
	scripts/python-environment "$$CACHE/parity" scripts/parity/requirements.txt
	bench/run $(build_dir)/bin $(if $(FULL),--full) $(if $(ROWS),--rows $(ROWS)) $(if $(AGAINST),--against "$$AGAINST")

.PHONY: bench-gpu
bench-gpu:  ## Measures a GPU: its link, overlap, riders, and the seed's runs beside DiffSynth; ROWS=link|streamed|seed ROUNDS=3
	@scripts/with-gpu $(MAKE) run-gpu-bench

.PHONY: run-gpu-bench
run-gpu-bench:
	$(call build_for_gpu,bench_device_link bench_model_modules)
	bench/run-gpu build/gpu/bin "$$CACHE/parity/bin/python" $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: load
load:  ## Measures what 256 clients at once are served, for SECONDS=60; FULL=1: a wider model too, and writes bench/LOAD.md
	$(call build,$(BUILD),ditserve ditctl tiny_checkpoint,python)
	DITSERVE_BIN=$(build_dir)/bin TINY_CHECKPOINT=$(build_dir)/tests/system/tiny_checkpoint \
	  python3 bench/load/load.py --seconds $(SECONDS) $(if $(FULL),--block --out bench/LOAD.md)

.PHONY: parity
parity:  ## Compares a live server with the Python reference, and pipelines that compute at it with their own
	$(call build,$(BUILD),ditserve ditctl,python)
	scripts/python-environment "$$CACHE/parity" scripts/parity/requirements.txt
	"$$CACHE/parity/bin/python" scripts/parity/live.py --bin $(build_dir)/bin
	"$$CACHE/parity/bin/python" scripts/parity/live_denoise.py --bin $(build_dir)/bin
	"$$CACHE/parity/bin/python" scripts/parity/live_step_cache.py --bin $(build_dir)/bin
	"$$CACHE/parity/bin/python" client/python/setup.py --quiet --version >/dev/null  # Describes the API to the package.
	PYTHONPATH=client/python/src "$$CACHE/parity/bin/python" scripts/parity/live_pipelines.py --bin $(build_dir)/bin

.PHONY: format
format:  ## Formats our C++
	scripts/setup lint
	scripts/lint --fix

.PHONY: lint
lint:  ## Checks format, clang-tidy and shell scripts; SINCE=<commit> for changed files alone
	$(call build,dev,ditserve_generated,lint)
	scripts/lint build/dev $(SINCE)

.PHONY: test-asan
test-asan:  ## Runs every test under AddressSanitizer and UndefinedBehaviorSanitizer
	$(MAKE) test BUILD=asan

.PHONY: test-tsan
test-tsan:  ## Runs every test under ThreadSanitizer
	$(MAKE) test BUILD=tsan

.PHONY: fuzz
fuzz:  ## Fuzzes the readers of untrusted input; SECONDS=<n> each
	$(call build,fuzz,ditserve_fuzzers,fuzz)
	scripts/fuzz build/fuzz "$$CACHE/fuzz" $(SECONDS)

.PHONY: soak
soak:  ## Sends mixed requests for MINUTES=30 and checks that nothing leaks
	$(call build,$(BUILD),ditserve ditctl)
	scripts/seeded-checkpoint $(build_dir)/bin "$$CACHE/soak" 2
	scripts/soak $(build_dir)/bin "$$CACHE/soak" $(MINUTES)

.PHONY: clients
clients:  ## Compares what 32 clients are answered while budgets change, for MINUTES=30
	$(call build,$(BUILD),clients)
	$(build_dir)/tests/system/clients $$(($(MINUTES) * 60))

.PHONY: simulate
simulate:  ## Simulates the residency policy for MINUTES=30 on all cores, from seed FROM=; reports and shrinks a failure
	$(call build,$(BUILD),simulate)
	$(build_dir)/bin/simulate --from=$(FROM) --minutes=$(MINUTES)

.PHONY: simulate-cuda
simulate-cuda:  ## Runs SEEDS=100000 of riders on the CUDA device, on a double of its runtime, from seed FROM=
	$(call build,$(BUILD),simulate_cuda)
	$(build_dir)/bin/simulate_cuda --from=$(FROM) --seeds=$(SEEDS)

.PHONY: mutate
mutate:  ## Breaks each rule, wait and refund of residency, and shows by which check or test that is found
	scripts/setup
	nice scripts/mutate --policy
	nice scripts/mutate --waits

.PHONY: cuda
cuda:  ## Builds with the CUDA device module
	$(call build,cuda)

.PHONY: install
install:  ## Installs to PREFIX=, a folder that can be moved
	$(call build,$(BUILD),$(installed))
	cmake --install $(build_dir) --prefix "$$PREFIX"

.PHONY: deb
deb:  ## Makes a Debian package in build/
	$(call build,$(BUILD),$(installed),deb)
	cpack --config $(build_dir)/CPackConfig.cmake -B build

.PHONY: image
image:  ## Builds the container image ditserve:VERSION; DOCKER_FLAGS=<more of docker build's>
	DOCKER_BUILDKIT=1 $(DOCKER) build --build-arg VERSION=$(version) --tag ditserve:$(version) \
	  --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" $(DOCKER_FLAGS) .

.PHONY: check-targets
check-targets:  ## Runs every target here, in hours; TARGETS=<some>
	scripts/check-targets $(TARGETS)

.PHONY: clean
clean:  ## Removes what was built; keeps what was fetched
	rm -rf $(filter-out build/cache,$(wildcard build/*))
