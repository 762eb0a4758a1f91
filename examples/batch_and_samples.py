"""Several prompts side by side, and several samples of one prompt that can be written again."""

import hasten

lm = hasten.load("demo", dtype="float32")

prompts = ["Once upon a time", "User: Can I get a latte?\nAssistant:", "def add(a, b):\n"]
for prompt, output in zip(
    prompts, lm.generate(prompts, hasten.SamplingParams(max_new_tokens=16)), strict=True
):
    print(repr(prompt), "->", repr(output.text))

params = hasten.SamplingParams(max_new_tokens=16, temperature=0.8, top_p=0.95, n=3, seed=7)
samples = lm.generate(["The little fox"], params)
for sample in samples:
    print("sample:", repr(sample.text))

again = lm.generate(["The little fox"], params, drafter="off")
print("the same samples without drafts:", [s.text for s in samples] == [s.text for s in again])
