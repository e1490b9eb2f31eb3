# `make demo` and `make test` need nothing but Python (3.10 to 3.13), pip and make.
# `make test-all` adds the tests that are marked slow. `make test5` runs what `make test` does with the other set of
# versions, transformers 5 and sentence-transformers 6.
PYTHON ?= python3
BIN := .venv/bin
# The folders themselves stand here: the links of a strict editable install are made anew when a file comes or goes.
SOURCES := pyproject.toml models/demo $(shell find face cli optimize runtime -type d -not -name '__pycache__')
INSTALLED := .venv/.installed
DEVELOPED := .venv/.developed
DEVELOPED5 := .venv5/.developed
PAGES := README.md CONTRIBUTING.md CHANGELOG.md docs
# A worker for each core, with that core to itself, and the tests spread over them as they get free.
PYTEST := -m pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: demo test test-all test5 check format docs clean

demo: $(INSTALLED)
	$(BIN)/xopt optimize demo

test: $(DEVELOPED)
	$(BIN)/python $(PYTEST) -m "not slow"

# Beside the others, what measures the machine comes last, and has it to itself.
test-all: $(DEVELOPED)
	$(BIN)/python $(PYTEST) -m "not alone"
	$(BIN)/python -m pytest -m alone

test5: $(DEVELOPED5)
	.venv5/bin/python $(PYTEST) -m "not slow"

check: $(DEVELOPED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/pymarkdown scan -r $(PAGES)

format: $(DEVELOPED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEVELOPED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

clean:
	rm -rf .venv .venv5 build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): EXTRAS := demo,optimum
$(DEVELOPED): EXTRAS := clients,demo,dev,docs,optimum,ray
$(DEVELOPED5): EXTRAS := demo,dev
$(INSTALLED) $(DEVELOPED): CONSTRAINTS := constraints.txt
$(DEVELOPED5): CONSTRAINTS := constraints-transformers5.txt
$(INSTALLED) $(DEVELOPED) $(DEVELOPED5): $(SOURCES) constraints.txt constraints-transformers5.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) --config-settings editable_mode=strict -e '.[$(EXTRAS)]'
	touch $@
