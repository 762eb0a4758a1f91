#!/usr/bin/env bash
# Other programs on the same weights.   bench/peers.sh DATA OUTPUT
#   DATA    folder with gsm8k_test_400.jsonl, humaneval.jsonl, mt_redundant.jsonl
#   OUTPUT  folder for the JSON records, one file a table; bench/tables.py makes Markdown of them
# LIMIT (prompts of a set, default 8), TOKENS (new tokens, default 128), SHAPES (default "135m 360m"), DTYPES (default
# "bfloat16 float32"), METHODS, BASELINES, FORWARD and HASTEN (the program) may be set. Programs that are not installed
# are left out; pip install 'hasten[llamacpp]' openvino-genai installs them.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: bench/peers.sh DATA OUTPUT" >&2
    exit 2
fi
data=$1
output=$2
hasten=${HASTEN:-hasten}
methods=${METHODS:-plain,auto}
baselines=${BASELINES:-hf,hf-prompt-lookup,llamacpp,llamacpp-lookup,openvino-genai}
common=(demo --methods "$methods" --baselines "$baselines" --forward "${FORWARD:-auto}")
common+=(--limit "${LIMIT:-8}" --max-new-tokens "${TOKENS:-128}")
for name in gsm8k_test_400 humaneval mt_redundant; do
    common+=(--prompts "$data/$name.jsonl")
done
mkdir -p "$output"

# Every table is made, also where one before it found a text that differs; the exit code remembers it.
status=0
for shape in ${SHAPES:-135m 360m}; do
    for dtype in ${DTYPES:-bfloat16 float32}; do
        for temperature in 0 0.7; do
            words=greedy
            if [ "$temperature" != 0 ]; then words=temperature-$temperature; fi
            "$hasten" bench "${common[@]}" --shape "$shape" --dtype "$dtype" --temperature "$temperature" \
                --json "$output/peers-$shape-$dtype-$words.json" || status=$?
        done
    done
done
exit "$status"
