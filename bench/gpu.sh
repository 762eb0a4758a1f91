#!/usr/bin/env bash
# A GPU: recorded passes against transformers, with and without torch.compile.   bench/gpu.sh DATA OUTPUT
#   DATA    folder with gsm8k_test_400.jsonl, humaneval.jsonl, mt_redundant.jsonl
#   OUTPUT  folder for the JSON records, one file a table; bench/tables.py makes Markdown of them
# LIMIT (prompts of a set, default 8), TOKENS (new tokens, default 128), SHAPES (default "1b 7b"), DTYPES (default
# "bfloat16"), METHODS, FORWARDS (default "graphs stock") and HASTEN (the program) may be set.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: bench/gpu.sh DATA OUTPUT" >&2
    exit 2
fi
status=0
for forward in ${FORWARDS:-graphs stock}; do
    FORWARD=$forward SHAPES=${SHAPES:-1b 7b} DTYPES=${DTYPES:-bfloat16} BASELINES=hf,hf-compiled,hf-prompt-lookup \
        METHODS=${METHODS:-plain,auto,suffix,token-recycling} \
        "$(dirname "$0")/peers.sh" "$1" "$2/$forward" || status=$?
done
exit "$status"
