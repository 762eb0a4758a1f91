#!/usr/bin/env bash
# The benchmark of docs/benchmarks.md.   bench/run.sh DATA OUTPUT
#   DATA    folder with gsm8k_test_400.jsonl, humaneval.jsonl, mt_redundant.jsonl, spec_bench_half.jsonl
#   OUTPUT  folder for the JSON records, one file a table; bench/tables.py makes Markdown of them
# LIMIT (prompts of a set, default 8), TOKENS (new tokens, default 128) and HASTEN (the program) may be set, and
# INDEX, a corpus index made by `hasten index`, with which REST is measured as well.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: bench/run.sh DATA OUTPUT" >&2
    exit 2
fi
data=$1
output=$2
hasten=${HASTEN:-hasten}
# Every drafter that needs nothing but the model.
drafters=token-recycling,token-recycling-template,aded,suffix,prompt-lookup,adapld,copyspec,aggressive,llma,stand,logitspec,lookahead,rasd,space,lud,jacobi,tokenswift,superposed
size=(--limit "${LIMIT:-8}" --max-new-tokens "${TOKENS:-128}")
common=(demo --shape 135m --dtype bfloat16 "${size[@]}")
index=()
if [ -n "${INDEX:-}" ]; then
    index=(--index "$INDEX")
    drafters=$drafters,rest,token-recycling+suffix+rest
fi
all=(--methods "plain,auto,token-recycling+suffix,$drafters" --baselines hf,hf-prompt-lookup "${index[@]}")
some=(--methods plain,auto,token-recycling+suffix,token-recycling,suffix,lookahead,prompt-lookup,jacobi,space
    --baselines hf,hf-prompt-lookup)
few=(--methods plain,auto --baselines hf)
real=()
for name in gsm8k_test_400 humaneval mt_redundant spec_bench_half; do
    real+=(--prompts "$data/$name.jsonl")
done
mkdir -p "$output"

# Every table is made, also where one before it found a text that differs; the exit code remembers it.
status=0
run() {
    "$hasten" bench "${common[@]}" "$@" || status=$?
}
run "${all[@]}" "${real[@]}" --json "$output/greedy.json"
run "${some[@]}" "${real[@]}" --temperature 0.7 --json "$output/temperature-0.7.json"
run "${some[@]}" --prompts repeat --json "$output/repeat.json"
run "${few[@]}" --prompts random:16 --json "$output/random.json"
run "${few[@]}" "${real[@]}" --temperature 1.0 --json "$output/temperature-1.0.json"
run "${few[@]}" --batch 1,4,8,16 --prompts "$data/gsm8k_test_400.jsonl" --prompts "$data/spec_bench_half.jsonl" \
    --prompts random:16 --json "$output/batch.json"
# The small model itself in float32, where every text must be the same token for token, without excuse.
common=(demo --dtype float32 "${size[@]}")
run "${all[@]}" "${real[@]}" --json "$output/float32-greedy.json"
run "${all[@]}" "${real[@]}" --temperature 0.7 --json "$output/float32-temperature-0.7.json"
exit "$status"
