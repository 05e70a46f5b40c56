# make lab   install into a virtual environment and open JupyterLab on chapters/
# make test  install what the tests need and run them all, with one summary at the end
#
# The active virtual (or conda) environment is used; without one, .venv is made. README.md has the plain pip lines (Windows, Colab).

PYTHON ?= python3
ENV := $(or $(VIRTUAL_ENV),$(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX)),.venv)
PY := $(ENV)/bin/python
# No look-up of updates or news: the course works offline. JupyterLab refuses to run as root without being told.
LAB_FLAGS := --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.news_url=None \
	$(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab test build lock

lab: $(ENV)/.mi-course-lab
	$(PY) -m jupyter lab $(LAB_FLAGS) --LabApp.default_url=/lab/tree/chapters

test: $(ENV)/.mi-course-test
	$(PY) tests/run.py

build: $(ENV)/.mi-course-lab
	$(PY) -m mi_course build

# Pins from what is installed in the environment; for maintainers.
lock:
	$(PY) .ci/lock.py

$(PY):
	@$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'mi-course needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)')"
	$(PYTHON) -m venv $(ENV)

# The stamp says that these pins are installed. PyTorch comes first and alone, so that each machine gets the build that fits it.
$(ENV)/.mi-course-%: requirements-%.lock pyproject.toml | $(PY)
	$(PY) -m pip install torch==2.13.0
	$(PY) -m pip install -r requirements-$*.lock
	$(PY) -m pip install --no-deps --no-build-isolation -e .
	touch $@
