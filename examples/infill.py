"""Fill gaps of a text with a masked-diffusion model, one of them in a language of your own."""

import hasten
from hasten.constraints import regex_constraint

model = hasten.load_diffusion("demo-diffusion", dtype="float32")
params = hasten.SamplingParams(seed=0)

output = model.infill("def add(a, b):<gap:12>return a + b\n", params, strategy="exact")
print(output.text)
print(f"{output.stats.num_tokens} tokens in {output.stats.num_forwards} forward passes, {output.guarantee}")

hour = regex_constraint("(1[0-2]|[1-9]):[0-5][0-9] (am|pm)", model.tokenizer)
pieces = ["User: When does the train leave?\nAssistant: It leaves at ", hasten.Gap(5), ".\n"]
print(model.infill(pieces, params, constraint=hour).gaps[0])
