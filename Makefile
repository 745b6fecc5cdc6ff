# All of it is in lab.py, which also runs where there is no make:  python lab.py [test | quick]  (options: ARGS="--cpu")
PYTHON ?= python3

.PHONY: lab test quick site
lab:   ; $(PYTHON) lab.py $(ARGS)
test:  ; $(PYTHON) lab.py test $(ARGS)
quick: ; $(PYTHON) lab.py quick $(ARGS)
# plain pages of the notebooks and tutorials in _docs/, once `make lab` has installed what they need
site:
	.venv/bin/python tools/site.py $(ARGS)
