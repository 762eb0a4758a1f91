"""An encoder-decoder model: what it reads is the prompt, what it writes is drafted from it.

The model here is tiny and untrained, so it writes nonsense; with a trained one for corrections or summaries,
`hasten.load("owner/name")` is all it takes.
"""

from transformers import T5Config, T5ForConditionalGeneration, set_seed

import hasten

tokenizer = hasten.load("demo-draft").tokenizer
set_seed(0)
sizes = {"vocab_size": len(tokenizer), "d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4}
config = T5Config(**sizes, decoder_start_token_id=0)
lm = hasten.load(T5ForConditionalGeneration(config), tokenizer=tokenizer, drafter="aggressive+suffix")

sources = ["I want to book a table for two.", "She go to school every day."]
params = hasten.SamplingParams(max_new_tokens=24, temperature=0.7, seed=4, ignore_eos=True)
lm.generate(sources, params)
outputs = lm.generate(sources, params, num_draft_tokens=8)  # nonsense once written is drafted well
plain = lm.generate(sources, params, drafter="off")

for source, output in zip(sources, outputs, strict=True):
    print(repr(source), "->", repr(output.text))
    print(f"{output.stats.num_tokens} tokens in {output.stats.num_steps} steps")
print("the same texts:", [one.token_ids for one in outputs] == [one.token_ids for one in plain])
