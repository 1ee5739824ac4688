PYTHON ?= python3
REQUIREMENTS := $(if $(wildcard /proc/driver/nvidia/version /usr/lib/wsl/lib/libcuda.so.1),requirements.txt,requirements-cpu.txt)

.PHONY: help demo test notebooks soak fuzz processes results lint clean

help:
	@echo "make demo   install into .venv, then compare three patch sizes on the digits: report.html"
	@echo "make test   install into .venv, then run the test suite"
	@echo "make notebooks  install into .venv, then execute the notebooks: three minutes"
	@echo "make soak   install into .venv, then kill sweeps, and train for long"
	@echo "make fuzz   try 500 configs at random (EXAMPLES=500): refused, or trained; half an hour"
	@echo "make processes  test four processes of one run"
	@echo "make results  write the measured tables of README and docs (RUNS=\"runs/cifar_patch_cpu ...\")"
	@echo "make lint   install into .venv, then check style and types"
	@echo "make clean  remove .venv and the outputs of builds, demo and soak"

.venv/installed: requirements.txt requirements-cpu.txt requirements-dev.txt pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) -r requirements-dev.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: .venv/installed
	.venv/bin/vit-jax train --config=configs/digits_patch.py

test: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

notebooks: .venv/installed
	.venv/bin/python notebooks/execute.py

EXAMPLES ?= 500
fuzz: .venv/installed
	FUZZ_EXAMPLES=$(EXAMPLES) .venv/bin/python -m pytest -q tests/test_config_fuzz.py

soak: .venv/installed
	rm -rf runs/soak
	.venv/bin/python tests/storm.py --kills=40 --workdir=runs/soak/storm
	.venv/bin/python tests/long_run.py --workdir=runs/soak/long

processes: .venv/installed
	PROCESSES=4 .venv/bin/python -m pytest tests/test_processes.py -s

# RUNS: work folders of finished experiments, whose tables are collected first.
results: .venv/installed
	.venv/bin/python scripts/write_results.py $(RUNS)

lint: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

clean:
	rm -rf .venv build vit_jax.egg-info runs/digits_patch runs/soak
