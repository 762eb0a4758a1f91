"""Make the `generate` of a transformers model faster, and keep everything written around it."""

import torch
import transformers

import hasten
from hasten.models.bundled_models import bundled_path

folder = str(bundled_path("demo"))  # or any causal language model
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

inputs = tokenizer("User: I want to book a table for two in San Jose.\nAssistant:", return_tensors="pt")
options = {"max_new_tokens": 64, "repetition_penalty": 1.05, "stop_strings": ["See you"]}

plain = model.generate(**inputs, **options, tokenizer=tokenizer)

hasten.accelerate(model, tokenizer)
fast = model.generate(**inputs, **options)

print(tokenizer.decode(fast[0]))
[stats] = model.generate.stats
print(f"{stats.num_tokens} tokens in {stats.num_steps} steps; the same tensor: {torch.equal(plain, fast)}")

hasten.restore(model)  # the original generate
