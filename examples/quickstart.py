"""Load a model, write a text, see how few steps it took."""

import hasten

lm = hasten.load("demo", dtype="float32")  # or a local folder, a hub id, or a transformers model
prompt = "User: I want to book a table for two in San Jose.\nAssistant:"
params = hasten.SamplingParams(max_new_tokens=48)

output = lm.generate(prompt, params)
plain = lm.generate(prompt, params, drafter="off")

print(prompt + output.text)
print(f"{output.stats.num_tokens} tokens in {output.stats.num_steps} steps,", end=" ")
print(
    f"{output.stats.mean_acceptance_length:.2f} tokens a step; plain decoding: {plain.stats.num_steps} steps"
)
print("the same text:", output.token_ids == plain.token_ids)
