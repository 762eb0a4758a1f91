"""A drafter of one's own: it may be as wrong as it likes, the text does not change."""

import hasten
from hasten.tree import DraftTree


class RepeatsItself:
    """Guesses that what followed the last occurrence of the current token follows again."""

    name = "repeats-itself"
    top_k = 0  # it does not want to see the target's best tokens

    def begin(self, sequence, prompt_candidates):
        pass

    def propose(self, sequence, budget):
        token_ids = sequence.token_ids
        for position in range(len(token_ids) - 2, -1, -1):
            if token_ids[position] == token_ids[-1]:
                guess = token_ids[position + 1 : position + 1 + min(budget, 6)]
                scores = [0.8 ** (depth + 1) for depth in range(len(guess))]
                return DraftTree(guess, range(-1, len(guess) - 1), scores, source_names=(self.name,))
        return DraftTree()

    def observe(self, sequence, observation):
        pass

    def end(self, sequence):
        pass

    def state(self):
        return {}

    def restore(self, state):
        pass


lm = hasten.load("demo", dtype="float32", drafter="off")
prompt = "User: I want to book a table for two in San Jose.\nAssistant:"
params = hasten.SamplingParams(max_new_tokens=64)
own = lm.generate(prompt, params, drafter=RepeatsItself(), num_draft_tokens=6)
plain = lm.generate(prompt, params)
print(own.text)
print(f"{own.stats.num_steps} steps instead of {plain.stats.num_steps}; ", end="")
print("who wrote what:", dict(own.stats.tokens_per_source))
print("the same text:", own.token_ids == plain.token_ids)
