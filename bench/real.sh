#!/usr/bin/env bash
# A real model: what auto gains over plain decoding, its sources, transformers and other programs.
#   bench/real.sh DATA OUTPUT MODEL
#   DATA    folder with humaneval.jsonl, gsm8k_test_400.jsonl, mt_bench.jsonl, spec_bench_half.jsonl
#   OUTPUT  folder for the JSON and CSV records, one pair a table, and for tables.md, which is made of them
#   MODEL   a transformers folder
# LIMIT (prompts of a set, default 2), TOKENS (new tokens, default 64), DTYPES (default "float32 bfloat16"),
# TEMPERATURES (default "0 0.7"), SETS, METHODS, BASELINES, SAMPLED_BASELINES, FORWARD, THREADS, HASTEN (the program)
# and PYTHON (beside it, for the tables) may be set, and GGUF, the same model as a file for llama.cpp, which then gets a
# table of its own: plain is llama.cpp's own decoding there. Programs that are not installed are left out with a word on
# how to install them. Conversations are asked their first turn only. Texts that loop are marked as such.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: bench/real.sh DATA OUTPUT MODEL" >&2
    exit 2
fi
data=$1
output=$2
model=$3
hasten=${HASTEN:-hasten}
python=${PYTHON:-$(dirname "$(command -v "$hasten")")/python}
methods=${METHODS:-plain,auto,suffix,token-recycling}
baselines=${BASELINES-hf,hf-prompt-lookup,dejavuu}
sampled=${SAMPLED_BASELINES-hf,dejavuu}
common=(--limit "${LIMIT:-2}" --max-new-tokens "${TOKENS:-64}" --first-turns --forward "${FORWARD:-auto}")
if [ -n "${THREADS:-}" ]; then common+=(--threads "$THREADS"); fi
for name in ${SETS:-humaneval gsm8k_test_400 mt_bench spec_bench_half}; do
    common+=(--prompts "$data/$name.jsonl")
done
mkdir -p "$output"

# Every table is made, also where one before it found a text that differs; the exit code remembers it.
status=0
files=()
for dtype in ${DTYPES:-float32 bfloat16}; do
    for temperature in ${TEMPERATURES:-0 0.7}; do
        words=greedy
        compared=$baselines
        if [ "$temperature" != 0 ]; then
            words=temperature-$temperature
            compared=$sampled
        fi
        file=$output/real-$dtype-$words
        echo "$(date +%H:%M:%S) $model in $dtype, $words" >&2
        if "$hasten" bench "$model" "${common[@]}" --dtype "$dtype" --temperature "$temperature" \
            --methods "$methods" --baselines "$compared" --json "$file.json" --csv "$file.csv" \
            > "$file.txt"; then
            :
        else
            status=$?
        fi
        cat "$file.txt"
        if [ -s "$file.json" ]; then files+=("$file.json"); fi
    done
done
if [ -n "${GGUF:-}" ]; then
    echo "$(date +%H:%M:%S) $GGUF, greedy" >&2
    "$hasten" bench "$GGUF" "${common[@]}" --forward auto --methods "$methods" --baselines "" \
        --json "$output/real-gguf.json" --csv "$output/real-gguf.csv" || status=$?
    if [ -s "$output/real-gguf.json" ]; then files+=("$output/real-gguf.json"); fi
fi
echo "$(date +%H:%M:%S) done; exit code $status" >&2
if [ ${#files[@]} -gt 0 ]; then
    "$python" "$(dirname "$0")/tables.py" "${files[@]}" > "$output/tables.md"
    echo "$output/tables.md" >&2
fi
exit "$status"
