#!/usr/bin/env bash
# Does the prediction of `gossamer analyze interference` rank what sums of deltas really cost? Deltas of five tasks by different
# methods and densities on MiniLM; every two of unlike tasks are added, both ways (the defaults: 10 deltas, 40 pairs, 80 losses).
# DATA: the folder of glue/, ner/ and ud/; OUT: where results go (absolute). TASKS, VARIANTS (method:density, for lora method:),
# STEPS, EXAMPLES (of dev), BASE, SEED may be set. To be stopped and started again at any time. Goal: a rank correlation of 0.7.
set -euo pipefail
: "${DATA:?the folder that holds glue/, ner/ and ud/}" "${OUT:?an absolute path for the results}"
here=$(cd "$(dirname "$0")" && pwd)
read -ra TASKS <<< "${TASKS:-pos ner mrpc stsb cola}"
read -ra VARIANTS <<< "${VARIANTS:-lt-sft:0.005 random:0.05}"
EXAMPLES=${EXAMPLES:-300}
mkdir -p "$OUT/data" "$OUT/deltas"

first() { awk -v limit="$1" '{ sub(/\r$/, "") } /^$/ { if (words) seen++; words = 0; if (seen >= limit) exit } !/^($|#)/ { words = 1 } { print }'; }
for task in "${TASKS[@]}"; do
  case $task in
    pos) cp "$DATA/ud/en_ewt/train.conllu" "$OUT/data/pos-train.conllu"
         { first "$EXAMPLES" < "$DATA/ud/en_ewt/dev.conllu"; echo; } > "$OUT/data/pos-dev.conllu" ;;
    ner) cp "$DATA/ner/en/train.txt" "$OUT/data/ner-train.txt"
         first "$EXAMPLES" < "$DATA/ner/en/dev.txt" > "$OUT/data/ner-dev.txt" ;;
    *)   cp "$DATA/glue/$task/train.jsonl" "$OUT/data/$task-train.jsonl"
         awk -v limit="$EXAMPLES" 'NR <= limit' "$DATA/glue/$task/val.jsonl" > "$OUT/data/$task-dev.jsonl" ;;
  esac
done

cd "$OUT/data" # so that the results name no machine's folders
given=()
for task in "${TASKS[@]}"; do
  case $task in
    pos) said=(--task tag --label upos) ending=conllu ;;
    ner) said=(--task tag --labels "${LABELS:-PER,ORG,LOC}") ending=txt ;;
    stsb) said=(--fields text_a,text_b --metric spearman) ending=jsonl ;;
    mrpc) said=(--fields text_a,text_b --metric accuracy_f1) ending=jsonl ;;
    cola) said=(--fields text --metric matthews) ending=jsonl ;;
    *)    echo "unknown task $task; expected pos, ner, mrpc, stsb or cola" >&2; exit 2 ;;
  esac
  for variant in "${VARIANTS[@]}"; do
    method=${variant%%:*} density=${variant#*:} name=$task-${variant//:/-}
    to=../deltas/$name.safetensors
    given+=("$name=$to=$task-dev.$ending")
    [ ! -e "$to" ] || continue
    again=(--force)
    [ ! -f "$to.partial/settings.json" ] || again=(--resume)
    gossamer fit --base "${BASE:-minilm}" --train "$task-train.$ending" "${said[@]}" --method "$method" \
      ${density:+--density "$density"} --steps "${STEPS:-300}" --batch-size 16 --seed "${SEED:-0}" --out "$to" "${again[@]}"
  done
done
python "$here/interference.py" .. "${given[@]}"
