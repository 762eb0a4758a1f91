"""Show a text while it is written, coloured by who proposed each token."""

from rich.console import Console
from rich.text import Text

import hasten

COLOURS = {"target": "", "token-recycling": "green", "aded": "yellow", "suffix": "cyan"}

console = Console()
lm = hasten.load("demo")
lm.generate(
    "Once upon a time, there was a dog.", hasten.SamplingParams(max_new_tokens=48)
)  # something to learn

for piece in lm.stream("Once upon a time, there was a cat.", hasten.SamplingParams(max_new_tokens=48)):
    colour = COLOURS.get(piece.source, "magenta")  # several sources together
    console.print(Text(piece.text, colour), end="", soft_wrap=True)
    output = piece.output

console.print()
for source, count in output.stats.tokens_per_source.most_common():
    console.print(f"{count:3} tokens by", Text(source, COLOURS.get(source, "magenta")))
