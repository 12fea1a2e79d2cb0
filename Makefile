# make demo   train on the embedded digits (once; interrupted, it goes on), then sample from what was trained
# make sample draw from the checkpoints that are in the repository, without training
# make test   the tests, but for the slow ones
# make test-slow  tests of several processes, long training and graphs
# make test-page  the demo page, in headless Chromium (Debian: `apt-get install chromium`)
# make test-lowest   all tests with the lowest versions that setup.py claims
# make lint   ruff, mypy and codespell, which also finds words that this project has a plainer one for
# make docs   the documentation site, into site/
# make package  wheel and sdist into dist/, and the wheel tried in an environment of its own
# make clean  remove the environment, the caches and what was built; outputs/ stays

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

# Test workers run side by side, one thread each.
test test-slow test-page: export OMP_NUM_THREADS = 1
test test-slow test-page: export MKL_NUM_THREADS = 1

.PHONY: demo sample test test-slow test-page test-lowest lint docs package clean
.DEFAULT_GOAL := test

demo: $(VENV)/.stamp-demo
	test -d outputs/demo/pipeline || $(BIN)/python examples/train_e2e.py --preset digits --output-dir outputs/demo \
		$(if $(wildcard outputs/demo/checkpoints/step-*),--resume)
	$(BIN)/python examples/sample.py outputs/demo/pipeline --num-images 64 --output outputs/demo/samples.png

EMOJI_CLASSES := "noto: Smileys & Emotion" "noto: People & Body" "fluent-3d: Animals & Nature" "twemoji: Food & Drink" \
	"noto: Travel & Places" "fluent-3d: Activities" "twemoji: Objects" "noto: Symbols" "twemoji: Flags" \
	"fluent-3d: Smileys & Emotion"

sample: $(VENV)/.stamp-demo
	$(BIN)/python examples/sample.py checkpoints/digits --output outputs/samples.png
	$(BIN)/python examples/sample.py checkpoints/cifar10 --num-images 100 --class-labels 0 1 2 3 4 5 6 7 8 9 \
		--output outputs/samples-cifar10.png
	$(BIN)/python examples/sample.py checkpoints/emoji --num-images 100 --class-labels $(EMOJI_CLASSES) \
		--output outputs/samples-emoji.png
	$(BIN)/python examples/sample.py checkpoints/digits-student --output outputs/samples-student.png
	$(BIN)/python examples/sample.py checkpoints/cifar10-student --num-images 100 \
		--class-labels 0 1 2 3 4 5 6 7 8 9 --output outputs/samples-cifar10-student.png
	$(BIN)/python examples/sample.py checkpoints/emoji-student --num-images 100 --class-labels $(EMOJI_CLASSES) \
		--output outputs/samples-emoji-student.png

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n 2 -m slow

test-page: $(VENV)/page/.stamp
	$(VENV)/page/bin/python -m pytest -q tests/page tests/test_app.py tests/test_space.py

# The lowest versions that setup.py claims, in an environment of its own; torch first, as below.
test-lowest: export OMP_NUM_THREADS = 1
test-lowest:
	$(PYTHON) -m venv $(VENV)/lowest
	$(VENV)/lowest/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0
	$(VENV)/lowest/bin/python -m pip install -q --disable-pip-version-check -c constraints-lowest.txt -e ".[test]"
	$(VENV)/lowest/bin/python -m pytest -n 2

lint: $(VENV)/.stamp-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy src
	$(BIN)/codespell -D - -D .codespell-habits.txt

docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The second environment has the wheel; what the wheel needs it takes from the first.
package: $(VENV)/.stamp-test
	rm -rf build dist $(VENV)/wheel
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(PYTHON) -m venv $(VENV)/wheel
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(VENV)/wheel/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	$(VENV)/wheel/bin/python -m pip install -q --disable-pip-version-check --no-deps dist/*.whl
	cd $(VENV)/wheel && OMP_NUM_THREADS=1 bin/python $(CURDIR)/tests/installed_wheel.py $(CURDIR)/checkpoints/digits

clean:
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
	find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and pinned: left to the resolver, a newer build may bring gigabytes along.
$(VENV)/.stamp-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not: try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==2.13.0
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-torch setup.py pyproject.toml
	$(PIP_INSTALL) -e ".[plots]"
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-torch setup.py pyproject.toml
	$(PIP_INSTALL) -e ".[test]"
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-torch setup.py pyproject.toml
	$(PIP_INSTALL) -e ".[docs]"
	@touch $@

# gradio needs an older pillow than the rest is tested with: an environment of its own, which takes what it doesn't have
# from the first.
$(VENV)/page/.stamp: constraints-page.txt $(VENV)/.stamp-test
	$(PYTHON) -m venv $(VENV)/page
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> "$$($(VENV)/page/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	$(VENV)/page/bin/python -m pip install -q --disable-pip-version-check -c constraints-page.txt \
		gradio playwright axe-playwright-python
	@touch $@
