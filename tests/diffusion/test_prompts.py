"""Text becomes given tokens, gaps become open positions, and nothing a user writes becomes a mask."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from hasten.diffusion.canvas import DenoiserSpec
from hasten.diffusion.drawing import noise_source
from hasten.diffusion.prompts import CanvasReader, Gap, parse_template
from hasten.errors import ConfigError, PromptError
from hasten.models.bundled_models import bundled_path

SPEC = DenoiserSpec(mask_id=1, eos_ids=(0,), pad_id=2)
NOISE = noise_source(SPEC, 8192, 0, 0)


@pytest.fixture(scope="module")
def reader() -> CanvasReader:
    return CanvasReader(AutoTokenizer.from_pretrained(bundled_path("demo")), SPEC, 8192, 64)


@pytest.mark.parametrize(
    "text", ["Step 1: <|mask|><|mask|> done", "<|mask|>", "a <|mask|>", "<|mask|> b", "<|endoftext|><|mask|>"]
)
def test_a_text_that_spells_the_mask_token_stays_text(reader: CanvasReader, text: str) -> None:
    canvas = reader.after(text, 4, NOISE)
    given = canvas.token_ids[canvas.is_given]
    assert SPEC.mask_id not in given
    assert reader.tokenizer.decode(given) == text
    assert canvas.num_open == 4


def test_a_text_piece_of_an_infill_that_spells_the_mask_stays_text(reader: CanvasReader) -> None:
    canvas, gaps = reader.with_gaps(["x = <|mask|>", Gap(3), "<|mask|> end"], NOISE)
    assert (canvas.token_ids == SPEC.mask_id).sum() == canvas.num_open == 3
    assert [gap.size for gap in gaps] == [3]


def test_other_special_tokens_keep_their_meaning(reader: CanvasReader) -> None:
    assert reader.encode("<|endoftext|>a <|mask|>")[0] == 0


def test_token_ids_that_are_masks_are_refused(reader: CanvasReader) -> None:
    with pytest.raises(PromptError, match=r"mask token \(id 1\).*infill"):
        reader.after([5, 1, 6], 4, NOISE)


def test_token_ids_outside_the_vocabulary_are_refused(reader: CanvasReader) -> None:
    with pytest.raises(PromptError, match="8192"):
        reader.after([5, 8192], 4, NOISE)


def test_a_prompt_without_tokens_is_refused(reader: CanvasReader) -> None:
    with pytest.raises(PromptError, match="at least one"):
        reader.after("", 4, NOISE)


def test_a_canvas_longer_than_the_model_takes_is_refused(reader: CanvasReader) -> None:
    with pytest.raises(PromptError, match=r"at most 61"):
        reader.after([5, 6, 7], 62, NOISE)
    assert len(reader.after([5, 6, 7], 61, NOISE)) == 64


def test_a_template_becomes_texts_and_gaps(reader: CanvasReader) -> None:
    pieces = parse_template("def f(x):<gap:5>return y<gap:2>")
    assert pieces == ["def f(x):", Gap(5), "return y", Gap(2)]
    canvas, gaps = reader.with_gaps(pieces, NOISE)
    for gap in gaps:
        assert canvas.is_open[gap.start : gap.end].all()
    texts = [canvas.token_ids[: gaps[0].start], canvas.token_ids[gaps[0].end : gaps[1].start]]
    assert [reader.tokenizer.decode(ids) for ids in texts] == ["def f(x):", "return y"]
    assert canvas.num_open == 7 == np.count_nonzero(canvas.token_ids == SPEC.mask_id)


@pytest.mark.parametrize("template", ["no gap", "<gap:0>", "<gap:many>", "<gap:-3>", "<gap:>"])
def test_a_template_without_a_usable_gap_is_refused(template: str) -> None:
    with pytest.raises(PromptError, match="<gap:20>"):
        parse_template(template)


def test_a_gap_has_at_least_one_token() -> None:
    with pytest.raises(ConfigError, match="0 tokens"):
        Gap(0)
