#!/usr/bin/env bash
# Which changes to one module would no test see: `bash tests/mutate.sh loader/order.py [TESTS...]`. Not part of CI: it takes minutes to
# hours. MOST=40: only so many of the changes, drawn by chance. TIMEOUT: seconds for each, 120 unless given.
# Makes .venv-mutate with cosmic-ray beside the tested set. Without TESTS, those that bear the module's name or room are run.
set -euo pipefail
cd "$(dirname "$0")/.."
module=${1:?give a module, for example loader/order.py}
shift
python=${PYTHON:-.venv-mutate/bin/python}
if [ ! -x "$python" ]; then
    python3 -m venv .venv-mutate
    .venv-mutate/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
fi
"$python" -c "import cosmic_ray" 2>/dev/null || "$python" -m pip install --quiet "cosmic-ray>=8.4,<9"
name=$(basename "$module" .py)
tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    mapfile -t tests < <(find "tests/$(dirname "$module")" -name "test_*${name}*.py" | sort)
fi
[ ${#tests[@]} -gt 0 ] || { echo "no test bears the name of $module: give some" >&2; exit 1; }

# The module is changed in a copy, so that whoever works here sees nothing of it.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -co --exclude-standard -z | tar --null --files-from=- -cf - | tar -xf - -C "$copy"
python=$(realpath -s "$python")
cd "$copy"
cat > mutate.toml <<TOML
[cosmic-ray]
module-path = "$module"
timeout = ${TIMEOUT:-120}.0
test-command = "$python tests/support/fork_server.py pytest.socket -- -m pytest -W ignore::pytest.PytestAssertRewriteWarning -q -x -p no:randomly -p no:cacheprovider ${tests[*]}"

[cosmic-ray.distributor]
name = "local"

# A type is no value, and a decorator that is gone is no slip.
[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/ReplaceBinaryOperator_BitOr_.*", "core/RemoveDecorator", "core/Variable.*"]
TOML
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# Byte code of all but the changed module is kept: once written here, no longer afterwards.
"$python" -m pytest -q -x -p no:cacheprovider "${tests[@]}" >baseline.txt 2>&1 || { tail -30 baseline.txt; echo "the tests fail without any change" >&2; exit 1; }
rm -f "$(dirname "$module")/__pycache__/$name."*
export PYTHONDONTWRITEBYTECODE=1
mkfifo server.stdin
libraries=(torch pyarrow.parquet datasets transformers diffusers PIL.ImageCms duckdb accelerate fsspec requests webdataset hypothesis pytest)
"$python" tests/support/fork_server.py pytest.socket "${libraries[@]}" <server.stdin >/dev/null &
exec 7>server.stdin
until [ -S pytest.socket ]; do sleep 0.2; done
cosmic() { "$python" -B -m cosmic_ray.cli "$@"; }
cosmic baseline mutate.toml || { echo "the tests fail without any change" >&2; exit 1; }
cosmic init mutate.toml session.sqlite
"$python" -m cosmic_ray.tools.filters.operators_filter session.sqlite mutate.toml
"$python" - session.sqlite "${MOST:-0}" <<'PY'
import random
import sys

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome, WorkResult

most = int(sys.argv[2])
with use_db(sys.argv[1], WorkDB.Mode.open) as db:
    left = sorted(item.job_id for item in db.pending_work_items)
    random.Random(0).shuffle(left)
    for job in left[most:] if most else []:
        db.set_result(job, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
PY
cosmic exec mutate.toml session.sqlite
"$python" - session.sqlite <<'PY'
import sys
from collections import Counter
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db

with use_db(sys.argv[1], WorkDB.Mode.open) as db:
    done = list(db.completed_work_items)
counts: Counter[str] = Counter()
rows = []
for item, result in done:
    if result.test_outcome is None:
        continue
    outcome = result.test_outcome.value
    counts[outcome] += 1
    if outcome == "survived":
        for mutation in item.mutations:
            line = mutation.start_pos[0]
            text = Path(mutation.module_path).read_text().splitlines()[line - 1].strip()
            rows.append((line, mutation.operator_name.removeprefix("core/"), text))
print(f"\n{counts.total()} changes: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
for line, operator, text in sorted(rows):
    print(f"{line:5}  {operator:60} {text}")
PY
