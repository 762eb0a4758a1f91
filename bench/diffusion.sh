#!/usr/bin/env bash
# Masked diffusion: every policy on both bundled models, accuracy against parallelism.   bench/diffusion.sh OUTPUT
#   OUTPUT  folder for the JSON records and the plot; bench/canvas_tables.py makes Markdown of them
# LISTS (questions a task at canvas 32, default 5), TEXTS (prompts of the text model at 32 and 128, default 2), METHODS
# (default all), LONG_METHODS (at canvas 512, where one token a forward takes minutes), DTYPE (default float32) and
# HASTEN (the program) may be set. In float32 a policy that is called exact must write the text of its reference.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: bench/diffusion.sh OUTPUT" >&2
    exit 2
fi
output=$1
hasten=${HASTEN:-hasten}
common=(--dtype "${DTYPE:-float32}")
every=(--methods "${METHODS:-all}")
long=exact,auto,static:4,static/dual,static+eos,static+prophet,threshold:0.9,threshold:0.9+eos,threshold:0.9+eot
long=$long,factor,entropy-bound,localleap,klass,credit,threshold:0.9+freedave
for cache in prefix dual dkv freecache vicinity recap measured; do
    long=$long,threshold:0.9/$cache
done
long=(--methods "${LONG_METHODS:-$long,factor/dual,threshold:0.9+eos/dual,threshold:0.9+eos/vicinity}" --canvas 512 --limit 1)
mkdir -p "$output"

# Every table is made, also where one before it found a broken promise; the exit code remembers it.
status=0
run() {
    "$hasten" "$@" || status=$?
}
bench() {
    run bench "$1" "${common[@]}" --json "$output/$2.json" "${@:3}"
}
bench demo-lists lists-32 "${every[@]}" --prompts lists --canvas 32 --limit "${LISTS:-5}"
bench demo-lists lists-128 "${every[@]}" --prompts lists --canvas 128 --limit 1
bench demo-lists lists-512 "${long[@]/#exact/learn2pd,exact}" --prompts lists:copy,lists:remove_index,lists:replace_index
bench demo-diffusion text-32 "${every[@]}" --prompts demo --canvas 32 --limit "${TEXTS:-2}"
bench demo-diffusion text-128 "${every[@]}" --prompts demo --canvas 128 --limit "${TEXTS:-2}"
bench demo-diffusion text-512 "${long[@]}" --prompts demo
run parallelbench demo-lists --dtype "${DTYPE:-float32}" --plot "$output/parallel.svg" --json "$output/parallel.json"
exit $status
