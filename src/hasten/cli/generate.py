"""``hasten generate``: texts from prompts, live or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hasten.cli import options, sampling
from hasten.cli.canvases import ConstraintChoice, DiffusionChoice, write_canvases
from hasten.cli.live import LiveText, print_outputs, summary
from hasten.cli.prompt_files import read_prompts
from hasten.core import SamplingParams
from hasten.detokenising import BROKEN, Detokeniser
from hasten.errors import ConfigError, GenerationInterrupted, PromptError
from hasten.files import require_writable

if TYPE_CHECKING:
    from hasten.text.engine import LanguageModel
    from hasten.text.requests import Output


_ONLY_AUTOREGRESSIVE = {
    "verify",
    "drafter",
    "num_draft_tokens",
    "forward",
    "store",
    "index",
    "draft",
    "draft_device",
    "draft_vocab",
    *sampling.ONLY_AUTOREGRESSIVE,
}
_ONLY_DIFFUSION = {
    "strategy",
    "spec",
    "regex",
    "json_schema",
    "grammar",
    "guide",
    "filter_file",
    "joint_sampler",
}


def generate(
    context: typer.Context,
    model: options.Model,
    *,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt. Repeatable.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A .jsonl of prompts as for bench; any other file is one prompt.")
    ] = None,
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
    stop: options.Stop = None,
    min_tokens: sampling.MinTokens = 0,
    stop_token_id: sampling.StopTokenIds = None,
    ignore_eos: sampling.IgnoreEos = False,
    drafter: options.DrafterName = "auto",
    num_draft_tokens: options.NumDraftTokens = None,
    policy: options.PolicyName = "cost",
    strategy: options.StrategyName = "auto",
    verify: options.VerifyName = "follow",
    batch: Annotated[int, typer.Option(help="How many prompts are written side by side.")] = 1,
    logprobs: sampling.Logprobs = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a prompt, with statistics.")
    ] = False,
    trace: Annotated[Path | None, typer.Option(help="Write one JSON line a decoding step.")] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    forward: options.ForwardName = "auto",
    store: options.Store = None,
    index: options.Index = None,
    draft: options.Draft = None,
    draft_device: options.DraftDevice = None,
    draft_vocab: options.DraftVocab = None,
    spec: options.Spec = None,
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    grammar: options.Grammar = None,
    guide: options.Guide = None,
    filter_file: options.FilterFile = None,
    joint_sampler: options.JointSampler = None,
) -> None:
    """Continue one or more prompts. The text of a single prompt appears while it is written."""
    from hasten.models.checkpoints import is_denoiser

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
        stop=tuple(stop or ()),
        min_tokens=min_tokens,
        stop_token_ids=tuple(stop_token_id or ()),
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    if logprobs is not None and not as_json:
        raise ConfigError(f"--logprobs {logprobs} has no place in a plain text; give --json too")
    if store is not None:
        require_writable(store, "store")
    if bool(prompt) == bool(file):
        raise PromptError("give either --prompt TEXT or --file FILE")
    if is_denoiser(model, spec):
        options.require_default(context, _ONLY_AUTOREGRESSIVE, "is for autoregressive models", model)
        # Until 0.1 --policy named the strategy of a diffusion model.
        options.require_default(context, {"policy"}, "is for autoregressive models, see --strategy", model)
        diffusion = DiffusionChoice(model, dtype, device, spec, guide, filter_file, joint_sampler).load()
        rules = ConstraintChoice(regex, json_schema, grammar)
        asked = file if file is not None else list(prompt or [])
        write_canvases(
            diffusion, rules, asked, params, strategy=strategy, batch=batch, as_json=as_json, trace=trace
        )
        return
    options.require_default(context, _ONLY_DIFFUSION, "is for diffusion models", model)
    language_model = options.load_model(
        model,
        dtype=dtype,
        device=device,
        forward=forward,
        drafter=drafter,
        store=store,
        index=index,
        draft=options.DraftChoice(draft, draft_device, draft_vocab),
    )
    prompts = list(prompt or [])
    if file:
        prompts = read_prompts(file, language_model.tokenizer, language_model.target.vocab_size)
    with _saved_store(language_model, store), _open_trace(trace, language_model) as tracer:
        arguments: dict[str, Any] = {"num_draft_tokens": num_draft_tokens, "policy": policy}
        arguments |= {"verify": verify, "trace": tracer}
        if len(prompts) == 1 and not as_json:
            _stream(language_model, prompts[0], params, arguments)
            return
        try:
            outputs = language_model.generate(prompts, params, batch_size=batch, **arguments)
        except GenerationInterrupted as interrupted:
            print_outputs(prompts, interrupted.outputs, _line, _as_json if as_json else None)
            raise
        print_outputs(prompts, outputs, _line, _as_json if as_json else None)


@contextmanager
def _saved_store(language_model: LanguageModel, store: Path | None) -> Iterator[None]:
    """What was learnt is saved also when Ctrl-C ended the writing, but not after an error."""
    try:
        yield
    except KeyboardInterrupt:
        if store is not None:
            language_model.save_store(store)
        raise
    if store is not None:
        language_model.save_store(store)


def _open_trace(path: Path | None, language_model: LanguageModel) -> Any:
    if path is None:
        return nullcontext()
    from hasten.cli.trace import TraceWriter

    return TraceWriter(path, language_model)


def _stream(
    language_model: LanguageModel, prompt: Any, params: SamplingParams, arguments: dict[str, Any]
) -> None:
    live = LiveText(Console(file=sys.stdout, highlight=False), is_coloured=False)
    pieces = language_model.stream(prompt, params, **arguments)
    if language_model.tokenizer is None:
        raise ConfigError("this model has no tokenizer, so there is no text to show; use --json")
    try:
        output = live.show(pieces)
    except KeyboardInterrupt:
        live.write_rest(Detokeniser(language_model.tokenizer).text(live.token_ids).rstrip(BROKEN))
        live.write("\n")
        raise
    live.write("\n")
    if output is not None:
        seed = f", seed {output.seed}" if params.temperature else ""
        typer.secho(f"{summary(output.stats)}{seed}", err=True, dim=True)


def _line(output: Output) -> str:
    return summary(output.stats)


def _as_json(prompt: Any, output: Output) -> dict[str, Any]:
    shown = {
        "prompt": prompt,
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "seed": output.seed,
        "guarantee": output.guarantee,
        "stats": output.stats.as_dict(),
    }
    if output.logprobs is not None:
        shown["logprobs"] = [asdict(each) for each in output.logprobs]
    return shown
