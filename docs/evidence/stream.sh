#!/usr/bin/env bash
# Tasks that arrive one after another on MiniLM: what does each keep in the sum of all, chosen apart (--avoid) or freely?
# DATA: the folder of glue/; OUT: where results go (absolute). TASKS (in their order), METHOD, DENSITY, STEPS, EXAMPLES (of dev), BASE,
# SEED may be set. To be stopped and started again at any time.
set -euo pipefail
: "${DATA:?the folder that holds glue/}" "${OUT:?an absolute path for the results}"
here=$(cd "$(dirname "$0")" && pwd)
read -ra TASKS <<< "${TASKS:-mrpc cola stsb rte cb}"
mkdir -p "$OUT/data" "$OUT/apart" "$OUT/free"
for task in "${TASKS[@]}"; do
  cp "$DATA/glue/$task/train.jsonl" "$OUT/data/$task-train.jsonl"
  awk -v limit="${EXAMPLES:-300}" 'NR <= limit' "$DATA/glue/$task/val.jsonl" > "$OUT/data/$task-dev.jsonl"
done

cd "$OUT/data" # so that the results name no machine's folders
for arm in apart free; do
  earlier=()
  for task in "${TASKS[@]}"; do
    case $task in
      cb|rte) said=(--fields premise,hypothesis) ;;
      mrpc)   said=(--fields text_a,text_b --metric accuracy_f1) ;;
      stsb)   said=(--fields text_a,text_b --metric spearman) ;;
      cola)   said=(--fields text --metric matthews) ;;
      *)      echo "unknown task $task; expected cb, rte, mrpc, stsb or cola" >&2; exit 2 ;;
    esac
    to=../$arm/$task.safetensors
    if [ ! -e "$to" ]; then
      again=(--force)
      [ ! -f "$to.partial/settings.json" ] || again=(--resume)
      gossamer fit --base "${BASE:-minilm}" --train "$task-train.jsonl" "${said[@]}" --method "${METHOD:-lt-sft}" \
        --density "${DENSITY:-0.05}" --steps "${STEPS:-300}" --batch-size 16 --seed "${SEED:-0}" ${earlier[@]+"${earlier[@]}"} \
        --out "$to" "${again[@]}"
    fi
    [ "$arm" = free ] || earlier+=(--avoid "$to")
  done
done
given=()
for task in "${TASKS[@]}"; do given+=("$task=$task-dev.jsonl"); done
python "$here/stream.py" .. "${given[@]}"
