# make train · make test · make torture · make lab · make export · make bench · make clean
# Needs Python 3.11 to 3.13 and nothing else; `make train PYTHON=python3.12` chooses one.

PYTHON ?= python3
BIN = .venv/bin
READY = .venv/installed

train: $(READY)  ## prepare the text that ships with Python and train a GPT on it
	$(BIN)/python data/pydocs.py
	$(BIN)/torchrun nanogpt_lib/train.py quickstart $(ARGS)

test: $(READY)  ## every test, then every notebook
	$(BIN)/pytest $(ARGS)
	$(BIN)/pytest -n 2 --nbmake notebooks

torture: $(READY)  ## 100 kills, 10,000 damaged files and 1,000 command lines: about half an hour
	$(BIN)/python tests/torture.py
	$(BIN)/python tests/fuzz.py

lab: $(READY)  ## read and run the notebooks in the browser
	$(BIN)/jupyter lab notebooks

export: $(READY)  ## write the library from the notebooks
	$(BIN)/ruff format --quiet notebooks
	$(BIN)/python tools/export.py

bench: $(READY)  ## the ladder of speed-ups on this machine
	$(BIN)/python nanogpt_lib/bench.py $(ARGS)

$(READY): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[course,dev]"
	touch $(READY)

clean:  ## remove the environment, the runs and the datasets made here
	rm -rf .venv runs data/*/

.PHONY: train test torture lab export bench clean
