"""Options that say how tokens are drawn and where a text ends, as SamplingParams have them."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten.errors import ConfigError

TypicalP = Annotated[
    float, typer.Option(help="Leave out tokens far from the typical, beyond this probability.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1, tokens of the prompt and the text become less likely.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Taken off a token's logit each time it was written; -2 to 2.")
]
PresencePenalty = Annotated[
    float, typer.Option(help="Taken off a token's logit if it was written at all; -2 to 2.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=BIAS", help="Added to the logit of a token; -inf forbids it. Repeatable."),
]
MinTokens = Annotated[int, typer.Option(help="The text does not end before so many tokens.")]
StopTokenIds = Annotated[
    list[int] | None, typer.Option("--stop-token-id", help="End the text with this token. Repeatable.")
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on where the model would end the text.")]
Logprobs = Annotated[
    int | None,
    typer.Option(
        help="With --json: the log-probability of each token, and so many of the likeliest.",
        show_default=False,
    ),
]

ONLY_AUTOREGRESSIVE = {
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "min_tokens",
    "logprobs",
}
"""parameters of commands that diffusion models do not hear"""


def biases(pairs: list[str] | None) -> dict[int, float]:
    """Of "ID=BIAS" texts. Raises ConfigError."""
    found: dict[int, float] = {}
    for pair in pairs or ():
        token_id, _, bias = pair.partition("=")
        try:
            found[int(token_id)] = float(bias)
        except ValueError:
            raise ConfigError(
                f"--logit-bias {pair!r} cannot work; it must be a token id and a number, as in 42=-1.5"
            ) from None
    return found
