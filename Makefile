# make train · test · test-avx2 · rehearse · ddp · gpu-status · environment · lab · site · export ·
# bench · gpu · claims · torture · clean
# Needs Python 3.11 to 3.13 and nothing else; `make train PYTHON=python3.12` chooses one.

PYTHON ?= python3
BIN = .venv/bin
READY = .venv/installed
BEAT = 10
NGPUS ?= 1
PRESET ?= quickstart
SEEN = index,name,driver_version,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw
UV = $(shell command -v uv)
INSTALL = $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --quiet)
# threads sleep soon where no one has chosen otherwise (nanogpt_lib/support/threads.py); for lab, too
ifndef OMP_WAIT_POLICY
GOMP_SPINCOUNT ?= 1000
export GOMP_SPINCOUNT
endif
AVX2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

train: $(READY)  ## prepare the text that ships with Python and train a GPT on it
	$(BIN)/python data/pydocs.py
	$(BIN)/python nanogpt_lib/train.py quickstart $(ARGS)

test: $(READY)  ## every test, then every notebook
	$(BIN)/pytest -n 2 $(ARGS)
	$(BIN)/pytest -n 2 --nbmake notebooks

test-avx2: $(READY)  ## the same as if this machine's processor had AVX2 and nothing newer
	$(AVX2) $(BIN)/pytest -n 2 $(ARGS)
	$(AVX2) $(BIN)/pytest -n 2 --nbmake notebooks

rehearse: $(READY)  ## every command of notebooks/runbook.md, small, on this CPU, a kill included
	$(BIN)/python tests/campaigns/rehearse.py $(ARGS)

ddp: $(READY)  ## train on the GPUs of this machine: make ddp NGPUS=8 PRESET=gpt2-124m ARGS=…
	$(BIN)/torchrun --standalone --nproc_per_node=$(NGPUS) nanogpt_lib/train.py $(PRESET) $(ARGS)

gpu-status:  ## the GPUs of this machine: load, memory, heat, power, and how they are linked
	@if command -v nvidia-smi > /dev/null; then nvidia-smi --format=csv --query-gpu=$(SEEN); nvidia-smi topo -m; \
	else echo "no nvidia-smi here: no NVIDIA GPU, or no driver"; fi

claims: $(READY)  ## what README promises and takes longer than a test
	$(BIN)/python tests/campaigns/claims.py $(ARGS)

torture: $(READY)  ## 100 kills, 10,000 damaged files and 1,000 command lines: about half an hour
	$(BIN)/python tests/campaigns/torture.py
	$(BIN)/python tests/campaigns/fuzz.py

lab: $(READY)  ## read and run the notebooks in the browser
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

site: $(READY)  ## the web book, from the executed notebooks: site/index.html
	$(BIN)/python tools/site/build.py $(ARGS)

export: $(READY)  ## write the library from the notebooks
	$(BIN)/ruff format --quiet notebooks
	$(BIN)/python tools/export.py

bench: $(READY)  ## this machine: how long each preset takes, what fits, sampling
	$(BIN)/python nanogpt_lib/bench.py $(ARGS)

gpu: $(READY)  ## all figures of a GPU in 8 minutes; ARGS="--out gpu.json" and what gpu.py takes
	$(BIN)/python tests/benchmarks/gpu.py $(ARGS)

environment: $(READY)  ## install into .venv what constraints.txt names, by uv if it is there, else pip

$(READY): pyproject.toml constraints.txt
	@echo "installing into .venv by $(if $(UV),uv,pip): some minutes, most of them for PyTorch"
	test -d .venv || $(if $(UV),uv venv --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
	@(while sleep $(BEAT) >/dev/null 2>&1; do echo "installing: $$(du -sh .venv | cut -f 1)"; done) & \
	beat=$$!; trap 'kill $$beat' EXIT; trap 'exit 130' INT TERM; \
	$(INSTALL) -c constraints.txt -e ".[course,dev,site]"
	touch $(READY)

clean:  ## remove the environment; `make clean ALL=1` the runs, datasets and pages made here, too
	rm -rf .venv $(if $(ALL),runs data/*/ site)

.PHONY: train test test-avx2 rehearse ddp gpu-status environment claims torture lab site export bench \
	gpu clean
