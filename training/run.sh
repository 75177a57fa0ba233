#!/usr/bin/env bash
# The whole training of the bundled pair, stage by stage; run it again after an interruption and it goes on.
set -eu -o pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
# Keep freed memory instead of giving it back: page faults cost a third of a step on some machines.
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=200000000
export PYTHONPATH=.. PYTHONUNBUFFERED=1
mkdir -p logs
stage() { echo "== $*"; "$python" train.py "$@" --bf16 2>>logs/errors.log | tee -a "logs/$2.$1.jsonl"; }
stage vision target --minutes 10 --batch 64 --rate 3e-3
stage speak target --minutes 95 --whole 0 --questions 2 --rate 2e-3 --ramp 0.3 0.35 0.42
stage speak target --minutes 114 --whole 0 --questions 2 --rate 1.4e-3 --restart
stage speak target --minutes 145 --whole 0.5 --questions 1 --rate 6e-4 --restart
stage speak target --minutes 190 --whole 0.1 --questions 1 --rate 1e-3 --restart --meetings 0.4
stage speak draft --minutes 60 --modal 0.95 --whole 0.02 --questions 2 --rate 1.2e-3
stage grow target --minutes 15 --batch 8 --whole 0.3 --questions 1 --rate 4e-4 --meetings 0.15
stage grow target --minutes 36 --batch 8 --whole 0.4 --questions 1 --rate 5e-4 --restart --meetings 0.12
stage grow target --minutes 52 --batch 8 --whole 0.4 --questions 1 --rate 5e-4 --restart --meetings 0.12
