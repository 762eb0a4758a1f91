#!/usr/bin/env bash
# Draft models: every tree with every rule, and what they gain.   bench/draft.sh DATA OUTPUT
#   DATA    folder with gsm8k_test_400.jsonl, humaneval.jsonl, mt_redundant.jsonl, spec_bench_half.jsonl
#   OUTPUT  folder for the JSON records, one file a table; bench/tables.py makes Markdown of them
# LIMIT (prompts of a set, default 2), TOKENS (new tokens, default 64), TREE_LIMIT and TREE_TOKENS (the same for the
# tables of every tree with every rule, default 1 and 48), NODES (of those trees, default 16), SHAPES (default "135m
# 360m"), TARGET, DRAFT and HASTEN (the program) may be set.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: bench/draft.sh DATA OUTPUT" >&2
    exit 2
fi
data=$1
output=$2
hasten=${HASTEN:-hasten}
trees="chain confident multi-candidate spectr rsd-c rsd-s dyspec dyspec-threshold sequoia eagle"
rules="residual residual-independent k-sequential traversal naive point-mass fastest typical"
common=("${TARGET:-demo}" --draft "${DRAFT:-demo-draft}" --dtype bfloat16 --baselines hf,hf-assisted)
two=(--prompts "$data/gsm8k_test_400.jsonl" --prompts "$data/humaneval.jsonl")
two_short=("${two[@]}" --limit "${TREE_LIMIT:-1}" --max-new-tokens "${TREE_TOKENS:-48}")
four=("${two[@]}" --limit "${LIMIT:-2}" --max-new-tokens "${TOKENS:-64}" --prompts "$data/mt_redundant.jsonl" --prompts "$data/spec_bench_half.jsonl")
mkdir -p "$output"

greedy=plain,draft
sampled=plain,draft,draft-chain/block
for tree in $trees; do
    greedy=$greedy,draft-$tree
    sampled=$sampled,draft-$tree
    for rule in $rules; do
        sampled=$sampled,draft-$tree/$rule
    done
done
for rule in $rules; do
    sampled=$sampled,draft/$rule
done
without=token-recycling+aded+suffix
chosen=plain,$without,auto,draft,draft-fastest,draft-sorted,draft-copyspec,draft-rasd,draft+suffix

# Every table is made, also where one before it found a text that differs; the exit code remembers it.
status=0
run() {
    "$hasten" bench "${common[@]}" "$@" || status=$?
}
for shape in ${SHAPES:-135m 360m}; do
    for temperature in 0 1; do
        rules_methods=()
        if [ $temperature = 1 ]; then rules_methods=(,draft/fastest,auto/fastest,draft-chain/block); fi
        run "${four[@]}" --shape "$shape" --temperature $temperature --methods "$chosen${rules_methods[*]}" \
            --json "$output/draft-$shape-temperature-$temperature.json"
    done
    # Greedy, all exact rules are one. Trees of equal size: the policy does not choose.
    run "${two_short[@]}" --shape "$shape" --methods "$greedy" --num-draft-tokens "${NODES:-16}" \
        --json "$output/draft-trees-$shape-temperature-0.json"
    run "${two_short[@]}" --shape "$shape" --temperature 1 --methods "$sampled" --num-draft-tokens "${NODES:-16}" \
        --json "$output/draft-trees-$shape-temperature-1.json"
done
# Acceptance alone, on more prompts: the small model itself, in float32, where each text that a rule promises must
# be plain decoding's.
alone=("${two[@]}" --limit "${ACCEPTANCE_LIMIT:-8}" --max-new-tokens "${TREE_TOKENS:-48}" --num-draft-tokens "${NODES:-16}"
    --dtype float32 --baselines "")
run "${alone[@]}" --methods "$greedy" --json "$output/draft-acceptance-temperature-0.json"
run "${alone[@]}" --temperature 1 --methods "$sampled" --json "$output/draft-acceptance-temperature-1.json"
exit "$status"
