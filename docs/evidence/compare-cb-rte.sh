#!/usr/bin/env bash
# All methods at 0.5 % on CB and RTE with MiniLM. DATA: the folder of cb/ and rte/; OUT: where results go (absolute).
# Arguments: cb, rte or both (default). METHODS, SEEDS, RATES, EPOCHS may be set. To be stopped and started again at any time.
set -euo pipefail
: "${DATA:?the folder that holds cb/ and rte/}" "${OUT:?an absolute path for the results}"
# every distinct method: child-d chooses what fisher does, and sam by default what gradient does
METHODS=${METHODS:-random,full,lt-sft,magnitude,sam:curvature=hutchinson,gradient,fisher,bitfit,diff-pruning,lora,pfeiffer,\
child-pruning,spiel-ag,mixout,child-f,houlsby,spiel-ma,diff-pruning-structured}
mkdir -p "$OUT/data"

# 150 examples of CB train; the other 75 and val (25 examples, none of them a contradiction) choose rate and epoch
head -n 150 "$DATA/cb/train.jsonl" > "$OUT/data/cb-train.jsonl"
{ tail -n +151 "$DATA/cb/train.jsonl"; echo; cat "$DATA/cb/val.jsonl"; } > "$OUT/data/cb-dev.jsonl"
cp "$DATA/cb/test.jsonl" "$OUT/data/cb-test.jsonl"
for part in train val test; do cp "$DATA/rte/$part.jsonl" "$OUT/data/rte-$part.jsonl"; done

cd "$OUT/data" # so that the results name no machine's folders
common=(--base minilm --task classify --fields premise,hypothesis --label label --density 0.005 --methods "$METHODS"
        --seeds "${SEEDS:-3}" --lr-grid "${RATES:-x0.3,x1,x3}")
[ $# -gt 0 ] || set -- cb rte
for set in "$@"; do
  case $set in
    cb)  gossamer compare "${common[@]}" --epochs "${EPOCHS:-6}" --save-steps 30 --train cb-train.jsonl \
                  --eval cb-dev.jsonl --test cb-test.jsonl --out ../cb ;;
    rte) gossamer compare "${common[@]}" --epochs "${EPOCHS:-2}" --train rte-train.jsonl --train-limit 500 --eval rte-val.jsonl \
                  --test rte-test.jsonl --out ../rte ;;
    *)   echo "unknown data set $set; expected cb or rte" >&2; exit 2 ;;
  esac
done
