"""Every drafter by name. A new one is entered in ``ENTRIES``, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.core import System
from hasten.drafters.base import Drafter, Resources
from hasten.drafters.corpus import rasd, rest
from hasten.drafters.corpus.corpus_index import CorpusIndex
from hasten.drafters.itself import jacobi, mask_tokens, superposed, tokenswift
from hasten.drafters.lookup import adapld, aggressive, copying, lookahead, suffix
from hasten.drafters.model import draft_model
from hasten.drafters.model.arms import Arm
from hasten.drafters.model.continued import Continued
from hasten.drafters.model.draft_model import DraftModel
from hasten.drafters.tables import aded, logitspec, stand, token_recycling
from hasten.drafters.tables.token_recycling import TokenRecycling
from hasten.drafters.trees import dyspec, eagle, multi_candidate, rsd, sequoia, specdec, spectr
from hasten.drafters.trees.acceptance_head import HEAD_FILE, load_head
from hasten.drafters.trees.adaptive import Adaptive
from hasten.drafters.trees.chain import Chain
from hasten.drafters.trees.growing import TreeShape
from hasten.errors import ConfigError
from hasten.models.fingerprint import model_fingerprint

if TYPE_CHECKING:
    from hasten.models.causal_lm import CausalLM
    from hasten.models.draft.draft_lm import DraftLM


@dataclass(frozen=True)
class Entry:
    """A drafter's name, what makes it, and the published methods that it is."""

    name: str
    make: Callable[[Resources], Drafter]
    systems: tuple[System, ...] = ()


DRAFT = "draft"
"""What "auto" adds where a draft model is given; other drafters that need one have names that begin so."""


def draft_of(given: Resources) -> DraftLM:
    """The draft model that a drafter was given. Raises ConfigError where there is none."""
    if given.draft is None:
        raise ConfigError(
            'drafters whose name starts with "draft" need a draft model: give draft=MODEL / --draft MODEL, '
            "as demo-draft for demo"
        )
    return given.draft


def _index_of(given: Resources) -> CorpusIndex:
    if given.index is None:
        raise ConfigError(
            "rest needs a corpus index: make one with `hasten index FILES -o STORE` and give index=STORE / "
            "--index STORE"
        )
    return given.index


def _torch_target(given: Resources, name: str) -> CausalLM | None:
    from hasten.models.causal_lm import require_torch

    return None if given.target is None else require_torch(given.target, f"the drafter {name}")


def _mask_token(given: Resources) -> int | None:
    return mask_tokens.default_mask_token(given.target)


def _draft_model(
    given: Resources,
    name: str,
    *shapes: Callable[[], TreeShape],
    all_exits: bool = False,
    rests: bool = False,
) -> DraftModel:
    """A drafter from a draft model: these shapes, each with the whole model or with all of its exits.

    One that rests leaves the draft out while it does not pay.
    """
    draft = draft_of(given)
    device = None if given.target is None else given.target.device
    exits = draft.exits[::-1] if all_exits else draft.exits[-1:]
    arms = [Arm(draft.at_exit(num_layers), shape()) for shape in shapes for num_layers in exits]
    return DraftModel(arms, name, rests=rests, target_device=device)


def _drafts(
    name: str,
    *shapes: Callable[[], TreeShape],
    systems: tuple[System, ...] = (),
    all_exits: bool = False,
    rests: bool = False,
) -> Entry:
    """The entry of ``_draft_model``."""

    def make(given: Resources) -> DraftModel:
        return _draft_model(given, name, *shapes, all_exits=all_exits, rests=rests)

    return Entry(name, make, systems)


def _specdec(given: Resources) -> Drafter:
    draft = draft_of(given)
    path = None if draft.folder is None else draft.folder / HEAD_FILE
    if path is None or not path.is_file():
        raise ConfigError(
            f"draft-specdec needs an acceptance head beside the draft model {draft.name!r}: make one with "
            f"`hasten train acceptance` and save it as {HEAD_FILE} in the draft's folder"
        )
    head = load_head(path, model_fingerprint(draft.model.forward.model))
    return _draft_model(given, "draft-specdec", lambda: specdec.SpecDec(head.chance))


def _continued(given: Resources) -> Drafter:
    name = "draft-copyspec"
    return Continued(_draft_model(given, name, Adaptive, rests=True), copying.CopySpec(), name)


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "token-recycling", lambda given: TokenRecycling(given.vocab_size), systems=(token_recycling.SYSTEM,)
    ),
    Entry("token-recycling-template", lambda given: TokenRecycling(given.vocab_size, template=True)),
    Entry("aded", lambda given: aded.Aded(vocab_size=given.vocab_size), (aded.SYSTEM,)),
    Entry(
        "suffix",
        lambda given: suffix.SuffixDrafter(vocab_size=given.vocab_size),
        (suffix.SUFFIX_SYSTEM, suffix.SAM_SYSTEM),
    ),
    Entry("prompt-lookup", lambda given: copying.PromptLookup(), (copying.PROMPT_LOOKUP_SYSTEM,)),
    Entry("copyspec", lambda given: copying.CopySpec(), (copying.COPYSPEC_SYSTEM,)),
    Entry("llma", lambda given: copying.Llma(), (copying.LLMA_SYSTEM,)),
    Entry("lookahead", lambda given: lookahead.Lookahead(vocab_size=given.vocab_size), (lookahead.SYSTEM,)),
    Entry("rest", lambda given: rest.Rest(_index_of(given)), (rest.SYSTEM,)),
    Entry("rasd", lambda given: rasd.Rasd(given.index, TokenRecycling(given.vocab_size)), (rasd.SYSTEM,)),
    Entry(
        "aggressive",
        lambda given: aggressive.AggressiveDecoding(),
        (aggressive.SYSTEM, aggressive.GAD_SYSTEM),
    ),
    Entry(
        "space",
        lambda given: mask_tokens.MaskTokens("space", mask_token_id=_mask_token(given)),
        (mask_tokens.SPACE_SYSTEM,),
    ),
    Entry(
        "lud",
        lambda given: mask_tokens.MaskTokens("lud", num_groups=1, width=1, mask_token_id=_mask_token(given)),
        (mask_tokens.LUD_SYSTEM,),
    ),
    Entry("jacobi", lambda given: jacobi.Jacobi(), (jacobi.SYSTEM,)),
    Entry(
        "tokenswift",
        lambda given: tokenswift.TokenSwift(_torch_target(given, "tokenswift")),
        (tokenswift.SYSTEM,),
    ),
    Entry(
        "superposed",
        lambda given: superposed.Superposed(_torch_target(given, "superposed")),
        (superposed.SYSTEM,),
    ),
    Entry("stand", lambda given: stand.Stand(given.vocab_size), (stand.SYSTEM,)),
    Entry("logitspec", lambda given: logitspec.LogitSpec(), (logitspec.SYSTEM,)),
    Entry("adapld", lambda given: adapld.AdaPld(), (adapld.SYSTEM,)),
    _drafts(DRAFT, Adaptive, systems=(draft_model.SYSTEM,), rests=True),
    _drafts("draft-chain", Chain),
    _drafts("draft-confident", lambda: Chain(length=20, confidence=0.3)),
    _drafts("draft-multi-candidate", multi_candidate.MultiCandidate, systems=(multi_candidate.SYSTEM,)),
    _drafts("draft-spectr", spectr.SpecTr, systems=(spectr.SYSTEM,)),
    _drafts("draft-rsd-c", rsd.RsdConstant, systems=(rsd.CONSTANT_SYSTEM,)),
    _drafts("draft-rsd-s", rsd.RsdBeams, systems=(rsd.BEAM_SYSTEM,)),
    _drafts("draft-dyspec", dyspec.DySpec, systems=(dyspec.HEAP_SYSTEM,)),
    _drafts("draft-dyspec-threshold", dyspec.DySpecThreshold, systems=(dyspec.THRESHOLD_SYSTEM,)),
    _drafts("draft-sequoia", sequoia.Sequoia, systems=(sequoia.SYSTEM,)),
    _drafts("draft-eagle", eagle.Eagle, systems=(eagle.SYSTEM,)),
    Entry("draft-specdec", _specdec, (specdec.SYSTEM,)),
    _drafts("draft-fastest", Adaptive, Chain, rsd.RsdBeams, eagle.Eagle, rests=True),
    _drafts("draft-sorted", Adaptive, all_exits=True, rests=True),
    Entry("draft-copyspec", _continued),
    Entry(
        "draft-rasd",
        lambda given: rasd.Rasd(given.index, _draft_model(given, "rasd", Adaptive, rests=True)),
    ),
)

DRAFTERS: dict[str, Callable[[Resources], Drafter]] = {one.name: one.make for one in ENTRIES}
"""name -> constructor, given what a drafter may be built from"""
SYSTEMS: tuple[System, ...] = tuple(system for one in ENTRIES for system in one.systems)
"""the published methods among them, as `hasten systems` lists them"""
