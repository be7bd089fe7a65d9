#!/usr/bin/env bash
# The demo: installs llm-forget into .venv and runs the main job on a real model. About fifteen minutes on two cores, all told.
# Safe to run again: the environment and the converted model are kept, the runs are made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
started=$SECONDS
make_environment .venv demo
echo "== demo: learn, forget, measure (runs/demo)"
.venv/bin/llm-forget demo
echo "== done in $((SECONDS - started)) s"
