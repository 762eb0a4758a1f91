"""Drafters by name: one published system a file, and their union."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import hasten.compile_cache  # noqa: F401 - before what is compiled
from hasten.core import System
from hasten.drafters.base import Drafter, Observation, Resources
from hasten.drafters.combined import CombinedDrafter
from hasten.drafters.corpus.corpus_index import CorpusIndex
from hasten.drafters.corpus.rasd import SYSTEM as RASD_SYSTEM, Rasd
from hasten.drafters.corpus.rest import SYSTEM as REST_SYSTEM, Rest
from hasten.drafters.itself.jacobi import SYSTEM as JACOBI_SYSTEM, Jacobi
from hasten.drafters.itself.mask_tokens import LUD_SYSTEM, SPACE_SYSTEM, MaskTokens, default_mask_token
from hasten.drafters.itself.superposed import SYSTEM as SUPERPOSED_SYSTEM, Superposed
from hasten.drafters.itself.tokenswift import SYSTEM as TOKENSWIFT_SYSTEM, TokenSwift
from hasten.drafters.lookup.adapld import SYSTEM as ADAPLD_SYSTEM, AdaPld
from hasten.drafters.lookup.aggressive import GAD_SYSTEM, SYSTEM as IAD_SYSTEM, AggressiveDecoding
from hasten.drafters.lookup.copying import (
    COPYSPEC_SYSTEM,
    LLMA_SYSTEM,
    PROMPT_LOOKUP_SYSTEM,
    CopySpec,
    Llma,
    PromptLookup,
)
from hasten.drafters.lookup.lookahead import SYSTEM as LOOKAHEAD_SYSTEM, Lookahead
from hasten.drafters.lookup.suffix import SAM_SYSTEM, SUFFIX_SYSTEM, SuffixDrafter
from hasten.drafters.model.arms import Arm
from hasten.drafters.model.continued import Continued
from hasten.drafters.model.draft_model import SYSTEM as DRAFT_SYSTEM, DraftModel
from hasten.drafters.own import is_own, make_own
from hasten.drafters.plain import NoDrafter
from hasten.drafters.tables.aded import SYSTEM as ADED_SYSTEM, Aded
from hasten.drafters.tables.logitspec import SYSTEM as LOGITSPEC_SYSTEM, LogitSpec
from hasten.drafters.tables.stand import SYSTEM as STAND_SYSTEM, Stand
from hasten.drafters.tables.token_recycling import SYSTEM as TOKEN_RECYCLING_SYSTEM, TokenRecycling
from hasten.drafters.trees import (
    SYSTEMS as TREE_SYSTEMS,
    DySpec,
    DySpecThreshold,
    MultiCandidate,
    RsdBeams,
    RsdConstant,
    SpecTr,
)
from hasten.drafters.trees.acceptance_head import HEAD_FILE, load_head
from hasten.drafters.trees.adaptive import Adaptive
from hasten.drafters.trees.chain import Chain
from hasten.drafters.trees.eagle import Eagle
from hasten.drafters.trees.growing import TreeShape
from hasten.drafters.trees.sequoia import Sequoia
from hasten.drafters.trees.specdec import SpecDec
from hasten.errors import ConfigError
from hasten.models.fingerprint import model_fingerprint

if TYPE_CHECKING:
    from hasten.models.causal_lm import CausalLM
    from hasten.models.draft.draft_lm import DraftLM


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


DRAFT = "draft"
"""What "auto" adds where a draft model is given; other drafters that need one have names that begin so."""


def _drafts(
    name: str, *shapes: Callable[[], TreeShape], all_exits: bool = False, rests: bool = False
) -> Callable[[Resources], Drafter]:
    """A drafter from a draft model: these shapes, each with the whole model or with all of its exits.

    One that rests leaves the draft out while it does not pay.
    """

    def make(given: Resources) -> DraftModel:
        draft = draft_of(given)
        device = None if given.target is None else given.target.device
        exits = draft.exits[::-1] if all_exits else draft.exits[-1:]
        arms = [Arm(draft.at_exit(num_layers), shape()) for shape in shapes for num_layers in exits]
        return DraftModel(arms, name, rests=rests, target_device=device)

    return make


def _specdec(given: Resources) -> Drafter:
    draft = draft_of(given)
    path = None if draft.folder is None else draft.folder / HEAD_FILE
    if path is None or not path.is_file():
        raise ConfigError(
            f"draft-specdec needs an acceptance head beside the draft model {draft.name!r}: make one with "
            f"`hasten train acceptance` and save it as {HEAD_FILE} in the draft's folder"
        )
    head = load_head(path, model_fingerprint(draft.model.forward.model))
    return _drafts("draft-specdec", lambda: SpecDec(head.chance))(given)


def _continued(given: Resources) -> Drafter:
    name = "draft-copyspec"
    first = _drafts(name, Adaptive, rests=True)(given)
    assert isinstance(first, DraftModel)
    return Continued(first, CopySpec(), name)


DRAFTERS: dict[str, Callable[[Resources], Drafter]] = {
    "token-recycling": lambda given: TokenRecycling(given.vocab_size),
    "adapld": lambda given: AdaPld(),
    "logitspec": lambda given: LogitSpec(),
    "stand": lambda given: Stand(given.vocab_size),
    "token-recycling-template": lambda given: TokenRecycling(given.vocab_size, template=True),
    "aded": lambda given: Aded(vocab_size=given.vocab_size),
    "suffix": lambda given: SuffixDrafter(vocab_size=given.vocab_size),
    "prompt-lookup": lambda given: PromptLookup(),
    "copyspec": lambda given: CopySpec(),
    "aggressive": lambda given: AggressiveDecoding(),
    "llma": lambda given: Llma(),
    "lookahead": lambda given: Lookahead(vocab_size=given.vocab_size),
    "rest": lambda given: Rest(_index_of(given)),
    "rasd": lambda given: Rasd(given.index, TokenRecycling(given.vocab_size)),
    "space": lambda given: MaskTokens("space", mask_token_id=default_mask_token(given.target)),
    "lud": lambda given: MaskTokens(
        "lud", num_groups=1, width=1, mask_token_id=default_mask_token(given.target)
    ),
    "jacobi": lambda given: Jacobi(),
    "tokenswift": lambda given: TokenSwift(_torch_target(given, "tokenswift")),
    "superposed": lambda given: Superposed(_torch_target(given, "superposed")),
    DRAFT: _drafts(DRAFT, Adaptive, rests=True),
    "draft-chain": _drafts("draft-chain", Chain),
    "draft-confident": _drafts("draft-confident", lambda: Chain(length=20, confidence=0.3)),
    "draft-specdec": _specdec,
    "draft-multi-candidate": _drafts("draft-multi-candidate", MultiCandidate),
    "draft-spectr": _drafts("draft-spectr", SpecTr),
    "draft-rsd-c": _drafts("draft-rsd-c", RsdConstant),
    "draft-rsd-s": _drafts("draft-rsd-s", RsdBeams),
    "draft-dyspec": _drafts("draft-dyspec", DySpec),
    "draft-dyspec-threshold": _drafts("draft-dyspec-threshold", DySpecThreshold),
    "draft-sequoia": _drafts("draft-sequoia", Sequoia),
    "draft-eagle": _drafts("draft-eagle", Eagle),
    "draft-fastest": _drafts("draft-fastest", Adaptive, Chain, RsdBeams, Eagle, rests=True),
    "draft-sorted": _drafts("draft-sorted", Adaptive, all_exits=True, rests=True),
    "draft-copyspec": _continued,
    "draft-rasd": lambda given: Rasd(given.index, _drafts("rasd", Adaptive, rests=True)(given)),
}
"""name -> constructor, given what a drafter may be built from"""

AUTO = ("stand", "logitspec", "suffix")
"""What "auto" combines."""

SYSTEMS: tuple[System, ...] = (
    TOKEN_RECYCLING_SYSTEM,
    ADED_SYSTEM,
    SUFFIX_SYSTEM,
    SAM_SYSTEM,
    PROMPT_LOOKUP_SYSTEM,
    COPYSPEC_SYSTEM,
    LLMA_SYSTEM,
    LOOKAHEAD_SYSTEM,
    REST_SYSTEM,
    RASD_SYSTEM,
    IAD_SYSTEM,
    GAD_SYSTEM,
    SPACE_SYSTEM,
    LUD_SYSTEM,
    JACOBI_SYSTEM,
    TOKENSWIFT_SYSTEM,
    SUPERPOSED_SYSTEM,
    STAND_SYSTEM,
    LOGITSPEC_SYSTEM,
    ADAPLD_SYSTEM,
    DRAFT_SYSTEM,
    *TREE_SYSTEMS,
)


def parts_of(name: str, *, has_draft: bool) -> tuple[str, ...]:
    """The systems that a drafter's name stands for."""
    if name == "off":
        return ()
    if name == "auto":
        return (*AUTO, DRAFT) if has_draft else AUTO
    return tuple(name.split("+"))


def asks_draft(part: str) -> bool:
    """Whether a system, one of ``parts_of``, asks the draft model; of one's own, that is not known."""
    return part.startswith(DRAFT) and not is_own(part)


def make_drafter(name: str, given: Resources) -> Drafter:
    """A drafter by name: one of DRAFTERS, FILE.py:CLASS, several joined by "+", "auto", or "off".

    Raises ConfigError for an unknown name, or a drafter that needs what was not given.
    """
    if name == "off":
        return NoDrafter()
    parts = parts_of(name, has_draft=given.draft is not None)
    unknown = sorted({part for part in parts if not is_own(part)} - set(DRAFTERS))
    if unknown or len(set(parts)) < len(parts):
        raise ConfigError(
            f"drafter={name!r} is unknown; choose auto, off, {', '.join(sorted(DRAFTERS))}, FILE.py:CLASS "
            "for one of your own, or several with +"
        )
    # A model comes first: a union keeps the laws of what its first source sampled.
    ordered = sorted(parts, key=lambda part: not asks_draft(part))
    return CombinedDrafter(
        [make_own(part, given) if is_own(part) else DRAFTERS[part](given) for part in ordered], name
    )


__all__ = [
    "AUTO",
    "DRAFT",
    "DRAFTERS",
    "SYSTEMS",
    "CombinedDrafter",
    "Drafter",
    "NoDrafter",
    "Observation",
    "Resources",
    "asks_draft",
    "draft_of",
    "make_drafter",
    "parts_of",
]
