#!/usr/bin/env bash
# Masked diffusion: every policy on both bundled models, accuracy against parallelism.   bench/diffusion.sh OUTPUT
#   OUTPUT  folder for the JSON records and the plot; bench/canvas_tables.py makes Markdown of them
# LISTS (questions a task at canvas 32 and 128, default 2), LONG_LISTS (at 512, default 1), TEXTS (prompts of the
# text model, default 2), LONG_TEXTS (at 512, default 1), METHODS (default all), DTYPE (default float32) and HASTEN
# (the program) may be set. In float32 a policy that is called exact must write the text of its reference.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: bench/diffusion.sh OUTPUT" >&2
    exit 2
fi
output=$1
hasten=${HASTEN:-hasten}
common=(--dtype "${DTYPE:-float32}" --methods "${METHODS:-all}")
mkdir -p "$output"

# Every table is made, also where one before it found a broken promise; the exit code remembers it.
status=0
run() {
    "$hasten" "$@" || status=$?
}
run bench demo-lists "${common[@]}" --prompts lists --canvas 32,128 --limit "${LISTS:-2}" \
    --json "$output/lists.json"
run bench demo-lists "${common[@]}" --prompts lists --canvas 512 --limit "${LONG_LISTS:-1}" \
    --json "$output/lists-512.json"
run bench demo-diffusion "${common[@]}" --prompts demo --canvas 32,128 --limit "${TEXTS:-2}" \
    --json "$output/text.json"
run bench demo-diffusion "${common[@]}" --prompts demo --canvas 512 --limit "${LONG_TEXTS:-1}" \
    --json "$output/text-512.json"
run parallelbench demo-lists --plot "$output/parallel.svg" --json "$output/parallel.json"
exit $status
