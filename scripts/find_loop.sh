#!/usr/bin/env bash
# Ask, find, review, forget, and search again, with the demo's model and people. About ten minutes on two CPU cores.
#
#   bash scripts/find_loop.sh [PEOPLE]     PEOPLE: of how many people a bad answer is known, 1 to 8 (default: 8)
#
# It uses the installed llm-forget, or installs it into .venv of the checkout. It writes to runs/demo and runs/loop below the
# current folder, and trains no target if runs/demo has one. The report is runs/loop/forgotten/report.html.
set -euo pipefail
people=${1:-8}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if ! command -v llm-forget >/dev/null; then
  (cd "$checkout" && source scripts/environment.sh && make_environment .venv demo && .venv/bin/python -m pip install -q -e ".[find]")
  PATH=$checkout/.venv/bin:$PATH
fi
say() { printf '\n== %s\n' "$*"; }

say "a model that knows everybody"
if [ ! -d runs/demo/target/model ]; then
  llm-forget demo --data-only
  llm-forget finetune --config recipes/demo/target.yaml
fi
rm -rf runs/loop
mkdir -p runs/loop
cat runs/demo/data/{forget,retain,neighbour}.jsonl >runs/loop/train.jsonl # four rows for each of 44 people

say "ask $people questions, and find the rows that taught the answers"
ask=()
while IFS= read -r question; do
  ask+=(--ask "$question")
done < <(awk 'NR % 4 == 1' runs/demo/data/forget.jsonl | head -n "$people" | sed 's/^{"question": "\([^"]*\)".*/\1/')
llm-forget find --data runs/loop/train.jsonl --model runs/demo/target/model "${ask[@]}" --review runs/loop/review.jsonl

say "review: runs/loop/review.jsonl has a decision for each row; here the proposals are taken as they are"
llm-forget find --review runs/loop/review.jsonl --holdout runs/demo/data/holdout.jsonl --output_dir runs/loop/data

say "forget"
llm-forget unlearn --config recipes/demo/default.yaml --output_dir runs/loop/forgotten --search runs/loop/data/search.json \
  --data.forget.path runs/loop/data/forget.jsonl --data.retain.path runs/loop/data/retain.jsonl \
  --data.holdout.path runs/loop/data/holdout.jsonl

say "search again: do the model's answers still lead to the rows?"
status=0
llm-forget find --again runs/loop/forgotten --data runs/loop/train.jsonl || status=$?
llm-forget report runs/loop/forgotten
exit $status
