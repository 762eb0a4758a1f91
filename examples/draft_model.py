"""A small model drafts for a larger one: the same text in fewer passes, or a text of the same law.

python examples/draft_model.py
"""

import hasten

lm = hasten.load("demo", draft="demo-draft", dtype="float32")
prompt = "User: I would like a table for two in San Jose.\nAssistant:"
params = hasten.SamplingParams(max_new_tokens=48, temperature=0.8, seed=3)

plain = lm.generate(prompt, params, drafter="off")
coupled = lm.generate(prompt, params, drafter="draft-rsd-s", num_draft_tokens=12)
sampled = lm.generate(prompt, params, drafter="draft-rsd-s", num_draft_tokens=12, verify="traversal")

print(plain.text)
for name, output in {"plain": plain, "follow": coupled, "traversal": sampled}.items():
    length = output.stats.mean_acceptance_length
    print(f"{name:10} {length:.2f} tokens a pass, guarantee: {output.guarantee}")
print("drafted with the target's own noise, the text is the same:", coupled.token_ids == plain.token_ids)
