#!/usr/bin/env bash
# Dependency parsing on English EWT with MiniLM, all weights tuned for 3 epochs: UAS and LAS of dev (which chooses the epoch) and test, and test
# parsed as CoNLL-U. DATA: the folder of ud/en_ewt/{train,dev,test}.conllu; OUT: where results go (absolute). METHOD, EPOCHS, RATE, SEED may be set.
set -euo pipefail
: "${DATA:?the folder that holds ud/en_ewt/}" "${OUT:?an absolute path for the results}"
METHOD=${METHOD:-full} SEED=${SEED:-0}
mkdir -p "$OUT"

cd "$DATA/ud/en_ewt" # so that the results name no machine's folders
delta="$OUT/en_ewt-$METHOD-$SEED.safetensors"
gossamer fit --base minilm --task parse --train train.conllu --eval dev.conllu --method "$METHOD" --epochs "${EPOCHS:-3}" \
         --lr "${RATE:-2e-4}" --batch-size 32 --seed "$SEED" --out "$delta" --json > "$OUT/fit-$METHOD-$SEED.json"
gossamer eval "$delta" --data test.conllu --json > "$OUT/test-$METHOD-$SEED.json"
gossamer predict "$delta" --data test.conllu --out "$OUT/test-$METHOD-$SEED.conllu"
cat "$OUT/fit-$METHOD-$SEED.json" "$OUT/test-$METHOD-$SEED.json"
