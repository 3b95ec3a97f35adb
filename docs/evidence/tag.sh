#!/usr/bin/env bash
# Tagging with MiniLM, fully fine-tuned for one epoch: is the harness sound? DATA: the folder of ud/ and ner/; OUT: where results
# go (absolute). Parts of speech on the first 400 English test sentences (goal: accuracy ≥ 0.962), entities (PER, ORG, LOC) on the
# first 500 (goal: F1 ≥ 0.894).
set -euo pipefail
: "${DATA:?the folder that holds ud/ and ner/}" "${OUT:?an absolute path for the results}"
mkdir -p "$OUT/data"

first() { awk -v limit="$1" '{ sub(/\r$/, "") } /^$/ { if (words) seen++; words = 0; if (seen >= limit) exit } !/^($|#)/ { words = 1 } { print }'; }
cp "$DATA/ud/en_ewt/train.conllu" "$OUT/data/pos-train.conllu"
first 400 < "$DATA/ud/en_ewt/test.conllu" > "$OUT/data/pos-test.conllu"
echo >> "$OUT/data/pos-test.conllu" # CoNLL-U ends each sentence with a blank line
cp "$DATA/ner/en/train.txt" "$OUT/data/ner-train.txt"
first 500 < "$DATA/ner/en/test.txt" > "$OUT/data/ner-test.txt"

cd "$OUT/data" # so that the results name no machine's folders
common=(--base minilm --task tag --method full --epochs 1 --lr 2e-4 --batch-size 32 --seed "${SEED:-0}" --force --json)
gossamer fit "${common[@]}" --train pos-train.conllu --eval pos-test.conllu --label upos --out ../pos.safetensors | tee ../pos.json
gossamer fit "${common[@]}" --train ner-train.txt --eval ner-test.txt --labels PER,ORG,LOC --out ../ner.safetensors | tee ../ner.json
