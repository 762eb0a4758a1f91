"""``hasten chat``: a conversation that remembers what was said."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from hasten.cli import options, sampling
from hasten.cli.live import LiveText, summary
from hasten.core import SamplingParams
from hasten.errors import HastenError, ModelError

if TYPE_CHECKING:
    from hasten.text.engine import LanguageModel

_NO_TEMPLATE = "This model has no chat template: it goes on with a text of User: and Assistant: lines."
_HELP = "/reset forgets the conversation, /stats shows the last answer's numbers, /exit or Ctrl-D leaves."


def chat(
    model: options.Model,
    *,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = None,
    min_p: options.MinP = 0.0,
    typical_p: sampling.TypicalP = 1.0,
    repetition_penalty: sampling.RepetitionPenalty = 1.0,
    frequency_penalty: sampling.FrequencyPenalty = 0.0,
    presence_penalty: sampling.PresencePenalty = 0.0,
    logit_bias: sampling.LogitBias = None,
    seed: options.Seed = None,
    min_tokens: sampling.MinTokens = 0,
    stop_token_id: sampling.StopTokenIds = None,
    ignore_eos: sampling.IgnoreEos = False,
    drafter: options.DrafterName = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    forward: options.ForwardName = "auto",
    index: options.Index = None,
    draft: options.Draft = None,
    draft_device: options.DraftDevice = None,
    draft_vocab: options.DraftVocab = None,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D or /exit the conversation."""
    from hasten.chat import stop_strings

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logit_bias=sampling.biases(logit_bias),
        seed=seed,
        min_tokens=min_tokens,
        stop_token_ids=tuple(stop_token_id or ()),
        ignore_eos=ignore_eos,
    )
    language_model = options.load_model(
        model,
        dtype=dtype,
        device=device,
        forward=forward,
        drafter=drafter,
        store=None,
        index=index,
        draft=options.DraftChoice(draft, draft_device, draft_vocab),
    )
    if language_model.tokenizer is None:
        raise ModelError(f"{model!r} has no tokenizer, so there is nothing to talk with")
    if not getattr(language_model.tokenizer, "chat_template", None):
        typer.secho(_NO_TEMPLATE, dim=True)
    typer.secho(_HELP, dim=True)
    _Chat(language_model, replace(params, stop=stop_strings(language_model.tokenizer))).run()


class _Chat:
    """The conversation so far and the numbers of the last answer."""

    def __init__(self, language_model: LanguageModel, params: SamplingParams) -> None:
        self._language_model = language_model
        self._params = params
        self._messages: list[dict[str, str]] = []
        self._last = "nothing was answered yet"

    def run(self) -> None:
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                typer.echo()
                return
            except KeyboardInterrupt:
                typer.echo("\n" + _HELP)
                continue
            if line == "/exit":
                return
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        if line == "/reset":
            self._messages.clear()
            typer.echo("the conversation is forgotten")
        elif line == "/stats":
            typer.echo(self._last)
        elif line.startswith("/"):
            typer.echo(f"{line.split(maxsplit=1)[0]} is unknown. {_HELP}")
        else:
            self._answer(line)

    def _answer(self, line: str) -> None:
        """A turn that fails, or that Ctrl-C ends before its first word, leaves the history as it was."""
        from hasten.chat import chat_prompt, has_template

        language_model = self._language_model
        asked = [*self._messages, {"role": "user", "content": line}]
        live = LiveText(Console(file=sys.stdout, highlight=False), is_coloured=False)
        try:
            if has_template(language_model.tokenizer):
                pieces = language_model.stream_chat(asked, self._params)
            else:
                pieces = language_model.stream(chat_prompt(language_model.tokenizer, asked), self._params)
            output = live.show(pieces)
            if output is not None:
                self._last = summary(output.stats)
        except KeyboardInterrupt:
            typer.echo(" ...", nl=False)
        except HastenError as problem:
            typer.secho(f"error: {problem}; /reset starts a new conversation", err=True)
            return
        typer.echo()
        answer = live.shown.strip()
        if answer:
            self._messages = [*asked, {"role": "assistant", "content": answer}]
