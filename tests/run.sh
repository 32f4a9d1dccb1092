#!/usr/bin/env bash
# All tests, on a fresh machine: makes .venv-test, installs the tested set, runs pytest on two cores. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv-test}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet -c constraints.txt -e ".[dev]"
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 exec "$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
