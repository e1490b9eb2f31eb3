# `make demo` and `make test` need nothing but Python (3.10 to 3.13), pip and make.
PYTHON ?= python3
BIN := .venv/bin
# The folders themselves stand here: the links of a strict editable install are made anew when a file comes or goes.
INSTALLED := .venv/.installed
DEVELOPED := .venv/.developed

.PHONY: demo test check format clean

demo: $(INSTALLED)
	$(BIN)/xopt optimize demo

test: $(DEVELOPED)
	$(BIN)/python -m pytest

check: $(DEVELOPED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEVELOPED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): EXTRAS := demo
$(DEVELOPED): EXTRAS := demo,dev
$(INSTALLED) $(DEVELOPED): pyproject.toml constraints.txt models/demo $(shell find cli optimize runtime -type d -not -name '__pycache__')
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -C editable_mode=strict -e '.[$(EXTRAS)]'
	touch $@
