"""One question, several strategies: what each writes, in how many forward passes, and what it promises."""

import hasten
from hasten.diffusion.list_tasks import is_correct, sample_questions

model = hasten.load_diffusion("demo-lists", dtype="float32")
[question] = sample_questions("reverse", 1, seed=3)
params = hasten.SamplingParams(max_new_tokens=32, seed=0)
print(question.prompt)

reference = model.generate(question.prompt, params, strategy="static")
for strategy in ("static", "exact", "threshold:0.9", "factor", "auto", "static:8"):
    output = model.generate(question.prompt, params, strategy=strategy)
    verdict = "right" if is_correct(question, output.text) else "wrong"
    cost = f"{output.stats.num_forwards:3} forwards"
    print(f"{strategy:14} {cost}  {output.guarantee:12} {verdict}  {output.text}")
exact = model.generate(question.prompt, params, strategy="exact")
print("exact is the reference's text:", exact.token_ids == reference.token_ids)
