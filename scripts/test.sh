#!/usr/bin/env bash
# All checks: creates an environment, then runs all tests, fast and slow, next to lint, types and wheel. pytest's summary comes last.
#
#   bash scripts/test.sh                  all checks
#   bash scripts/test.sh tests/adapters   selected tests (arguments go to pytest); lint, types and wheel still run
#   bash scripts/test.sh --lowest         the fast tests with the lowest versions that pyproject.toml allows (scripts/lowest.txt)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Tests write and remove thousands of small files. A disk that discards freed blocks needs milliseconds for each, memory does not.
scratch=${TMPDIR:-/tmp}
if [ -w /dev/shm ] && [ "$(df -Pk /dev/shm | awk 'END { print $4 }')" -gt 4000000 ]; then scratch=/dev/shm; fi
logs=$(mktemp -d "$scratch/llm-forget.XXXXXX")
trap 'rm -rf "$logs"' EXIT
parallel=(-n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder)

if [ "${1:-}" = --lowest ]; then
  shift
  make_environment .venv-lowest all scripts/lowest.txt
  python=$PWD/.venv-lowest/bin/python
  "$python" -m pip install --quiet --constraint scripts/constraints.txt pytest pytest-xdist hypothesis
  echo "== fast tests with the lowest versions"
  TMPDIR=$logs "$python" -m pytest "${parallel[@]}" "$@"
  exit
fi

# The browser's packages come while pip works, and lint, types and wheel run next to the tests, which wait at times.
timeout 300 bash scripts/install_chromium.sh >"$logs/chromium" 2>&1 &
chromium=$!
make_environment .venv-test dev
python=$PWD/.venv-test/bin/python
wait "$chromium" || echo "== chromium could not be installed, so the tests of the pages are skipped"

checks() {
  set -euo pipefail
  echo "== lint"
  "$python" -m ruff check .
  "$python" -m ruff format --check .

  echo "== import contracts"
  .venv-test/bin/lint-imports --no-cache

  echo "== types"
  "$python" -m mypy

  echo "== wheel: build it, and import it from an empty folder"
  "$python" -m build --quiet --wheel --no-isolation --outdir "$logs/wheel" .
  "$python" -m pip install --quiet --no-deps --target "$logs/installed" "$logs"/wheel/llm_forget-*.whl
  cd "$logs" && PYTHONPATH="$logs/installed" "$python" -I -c "
import sys
sys.path.insert(0, '$logs/installed')
import llm_forget
from llm_forget.utils.shipped import shipped
assert llm_forget.__file__.startswith('$logs/installed'), llm_forget.__file__
for path in ('recipes/demo/npo.yaml', 'eval/suites/demo.yaml', 'eval/capability/general_knowledge.jsonl'):
    assert shipped(path).is_file(), path
print('llm_forget', llm_forget.__version__, 'imports, with its recipes and suites')
"
}
(checks) >"$logs/checks" 2>&1 &
checks=$!

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "== tests on the GPU"
  "$python" -m pytest -m gpu
fi

echo "== tests, and in the background lint, import contracts, types and wheel"
failed=0
TMPDIR=$logs "$python" -m pytest -m "" --hypothesis-profile full "${parallel[@]}" "$@" | tee "$logs/tests" || failed=$?
wait "$checks" || { failed=$?; echo "== NOT PASSED: the last of these checks"; }
cat "$logs/checks"
sed -n '/short test summary info/,$p' "$logs/tests" | sed '$d'  # failures and errors, if there are any
tail -n 1 "$logs/tests"
exit "$failed"
