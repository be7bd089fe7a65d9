#!/usr/bin/env bash
# The demo: installs llm-forget into .venv and unlearns fictitious people from a real model. About 10 minutes on two cores.
# It can be run again: the environment and the converted model are kept, and the runs are replaced.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
started=$SECONDS
make_environment .venv demo
echo "== demo: fine-tune, unlearn, evaluate (runs/demo)"
.venv/bin/llm-forget demo
echo "== done in $((SECONDS - started)) s"
