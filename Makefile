PYTHON ?= python3
REQUIREMENTS := $(if $(wildcard /proc/driver/nvidia/version),requirements.txt,requirements-cpu.txt)

.PHONY: help demo test processes lint clean

help:
	@echo "make demo   install into .venv, then compare three patch sizes on the digits: report.html"
	@echo "make test   install into .venv, then run the test suite"
	@echo "make processes  install into .venv, then test four processes of one run"
	@echo "make lint   install into .venv, then check style and types"
	@echo "make clean  remove .venv and the demo's results"

.venv/installed: requirements.txt requirements-cpu.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) -r requirements-dev.txt
	touch $@

demo: .venv/installed
	.venv/bin/python -m vit_jax.main --config=configs/digits_patch.py

test: .venv/installed
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

processes: .venv/installed
	PROCESSES=4 .venv/bin/python -m pytest tests/test_processes.py -s

lint: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

clean:
	rm -rf .venv runs/digits_patch
