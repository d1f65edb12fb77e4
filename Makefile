# Everything a newcomer needs: `make demo`, `make test`. Both work from a bare clone and may be repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types wheels docs site browser picture bench bench-accuracy bench-long bench-natural bench-choose speedrun bench-help bench-finetune gpu gpu-wheels gpu-peaks leaderboard parity slow soak install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements-dev.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "akssl needs Python 3.10 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: install  ## train SimSiam on drawn shapes; scores and a report at the end
	$(BIN)/akssl run simsiam

test: install lint types  ## the whole suite, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

wheels: install  ## every distribution as wheel and sources in dist/, checked and installed from there alone
	$(BIN)/python tests/wheels.py

docs: install  ## write the generated parts of the documentation again
	$(BIN)/python docs/generate.py

site: install  ## the documentation as web pages: docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -n -q -E docs docs/_build/html

browser: install  ## the report in a real browser; needs a Chromium on the path
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[browser]'
	$(BIN)/python -m pytest tests/reporting/test_browser.py

picture: install  ## the README's picture of a report: of the run in runs/first, or RUN=DIR
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[browser]'
	$(BIN)/python docs/picture.py $(or $(RUN),runs/first)/report.html

bench: $(VENV)/.peers  ## speed, as ratios measured side by side, forty minutes
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/throughput.py simclr byol dino --size 96 --batch 64 --out throughput-96
	$(BIN)/python benchmarks/photos.py
	$(BIN)/python benchmarks/feeding.py
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/busy.py --waiting "torch's own" passive --repeats 1 --steps 2
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python docs/generate.py

bench-accuracy: $(VENV)/.peers  ## the table of all methods beside baselines and peers, hours; repeat it to go on
	$(BIN)/python benchmarks/accuracy.py --work runs/accuracy --sweeps runs/leaderboard
	$(BIN)/python docs/generate.py

bench-long: install  ## its rows over 20 epochs, of the methods that drawn shapes take so long, hours; repeat it to go on
	$(BIN)/python benchmarks/accuracy.py "ibot 20 epochs" "ijepa 20 epochs" "mae 20 epochs" --data shapes --work runs/accuracy
	$(BIN)/python docs/generate.py

bench-natural: $(VENV)/.peers  ## the same table on CIFAR-10, three seeds, both sides also tuned alike; DATA=DIR with train/ and test/, hours; repeat it to go on
	$(BIN)/python benchmarks/tuning.py --cifar $(DATA) --work runs/tuning
	$(BIN)/python benchmarks/accuracy.py --data cifar-10 --cifar $(DATA) --work runs/natural --sweeps runs/leaderboard
	$(BIN)/python benchmarks/courses.py runs/leaderboard/cifar-10
	$(BIN)/python docs/generate.py

bench-choose: install  ## akssl choose beside all methods in full, whose runs it shares with leaderboard and bench-natural; DATA=DIR adds CIFAR-10; hours
	$(BIN)/python benchmarks/choosing.py --out runs/choosing --sweeps runs/leaderboard \
	  $(if $(DATA),--cifar $(DATA) --data shapes fashion-mnist cifar-10)
	$(BIN)/python benchmarks/choosing.py --sweep runs/leaderboard/shapes
	$(if $(DATA),$(BIN)/python benchmarks/choosing.py --sweep runs/leaderboard/cifar-10)

speedrun: $(VENV)/.peers  ## the best backbone in 2, 5 and 10 minutes by the clock, beside peers; DATA=DIR of CIFAR-10; four and a half hours; repeat it to go on
	$(BIN)/python benchmarks/speedrun.py --cifar $(DATA) --work runs/speedrun
	$(BIN)/python docs/generate.py

bench-help: install  ## did it help? one short run judged at 1, 10 and 100 % of the labels, six minutes
	$(BIN)/python benchmarks/did_it_help.py
	$(BIN)/python docs/generate.py

bench-finetune: install  ## finetune at 1, 10 and 100 % of the labels, beside a linear probe and from scratch, two hours on one core; repeat it to go on
	$(BIN)/python benchmarks/finetuning.py --work runs/finetuning
	$(BIN)/python docs/generate.py

GPU := $(firstword $(wildcard $(BIN)/python) $(PYTHON)) benchmarks/gpu

gpu:  ## what only a real GPU can show, half an hour; PART=correct, fast or whole, OUT=FOLDER; installs nothing
	$(GPU) $(PART) $(if $(OUT),--out $(OUT)) $(if $(ROWS),--rows "$(ROWS)") $(if $(CIFAR),--cifar $(CIFAR)) \
	  $(if $(WHEELS),--wheels $(WHEELS)) $(if $(DEVICE),--device $(DEVICE)) $(if $(SHORT),--short)

gpu-wheels:  ## what a GPU machine without network may lack beside torch, in build/wheels
	$(PYTHON) -m pip download --disable-pip-version-check -q -d build/wheels --only-binary=:all: \
	  --python-version $(or $(FOR),3.12) --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  pydantic pluggy safetensors tqdm PyYAML click packaging
	$(PYTHON) -m pip download --disable-pip-version-check -q -d build/wheels --only-binary=:all: --no-deps \
	  --python-version $(or $(FOR),3.12) --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  kornia==0.9.0 kornia_rs

gpu-peaks:  ## the memory that steps may hold on a GPU, counted again on the null device
	$(GPU) peaks --device null

leaderboard: install  ## every method on drawn shapes over three seeds, four hours on one core; may be stopped and repeated
	$(BIN)/akssl sweep --methods all --data shapes --seeds 0,1,2 --epochs 4 --out runs/leaderboard/shapes
	cp runs/leaderboard/shapes/results.json benchmarks/results/leaderboard.json
	$(BIN)/akssl sweep --methods simclr,vicreg --data shapes --set data.size=2000 --precision fp32 --seeds 0,1,2 --epochs 2 --no-report --out runs/short
	$(BIN)/python benchmarks/courses.py runs/leaderboard/shapes runs/short
	$(BIN)/python docs/generate.py

parity: $(VENV)/.peers  ## our losses against lightly's, stable-pretraining's and the papers' formulas
	$(BIN)/python -m pytest benchmarks/test_parity.py benchmarks/test_parity_stable.py

$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[bench]'
	touch $@

slow: install  ## learning runs that take minutes
	$(BIN)/python -m pytest -m slow

soak: install  ## kills, faults, layouts, hostile input and ten thousand steps, an hour and a half
	$(BIN)/python soak/kills.py --every
	$(BIN)/python soak/layouts.py
	$(BIN)/python soak/faults.py
	$(BIN)/python soak/fuzz.py
	$(BIN)/python soak/steps.py
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache docs/_build
