# `make demo` and `make test` need nothing but Python (3.10 to 3.13), pip and make.
# `make test5` runs those that depend on it with the other set of versions, transformers 5 and sentence-transformers 6.
PYTHON ?= python3
BIN := .venv/bin
# The folders themselves stand here: the links of a strict editable install are made anew when a file comes or goes.
SOURCES := pyproject.toml models/demo $(shell find cli optimize runtime -type d -not -name '__pycache__')
INSTALLED := .venv/.installed
DEVELOPED := .venv/.developed
DEVELOPED5 := .venv5/.developed
TESTS5 := $(addprefix tests/optimize/test_,export.py kinds.py odd_models.py stacks.py) \
  tests/runtime/frames tests/runtime/scoring

.PHONY: demo test test5 check format clean

demo: $(INSTALLED)
	$(BIN)/xopt optimize demo

test: $(DEVELOPED)
	$(BIN)/python -m pytest

test5: $(DEVELOPED5)
	.venv5/bin/python -m pytest $(TESTS5)

check: $(DEVELOPED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEVELOPED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv5 build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): EXTRAS := demo,optimum
$(DEVELOPED): EXTRAS := demo,dev,optimum,ray
$(DEVELOPED5): EXTRAS := demo,dev
$(INSTALLED) $(DEVELOPED): CONSTRAINTS := constraints.txt
$(DEVELOPED5): CONSTRAINTS := constraints-transformers5.txt
$(INSTALLED) $(DEVELOPED) $(DEVELOPED5): $(SOURCES) constraints.txt constraints-transformers5.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -C editable_mode=strict -e '.[$(EXTRAS)]'
	touch $@
