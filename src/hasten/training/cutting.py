"""Begins a model as some layers of a larger one, and trains it at several depths at once.

A cut model takes the embeddings, the norm, the head and the chosen layers of the model it is cut from. A
sorted model (S2D, arXiv 2407.01955) is of use at each of its exits: the loss is a sum over the exits, all
read through the one final norm and head. The weights of the sum are ours. Knows no text and no loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel

from hasten.errors import ConfigError, IncompatibleModels

_SHARED = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "tie_word_embeddings": "tie_word_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}
"""Options of a recipe, and their names in transformers: what a cut model has in common with its source."""

_EARLY_STRIDE = 4
"""Earlier exits learn from one position in so many: a head costs as much as the layers of a small model."""

_ROWS_AT_ONCE = 512
"""Rows of logits held in memory: the vocabulary times this, instead of times the whole batch."""


def cut(source: PreTrainedModel, model: LlamaForCausalLM, keep_layers: tuple[int, ...], name: str) -> None:
    """Overwrites the weights of `model` with those of `source`, layer i with layer keep_layers[i].

    Raises IncompatibleModels where source is no plain Llama, ConfigError where its shape or depth is another.
    """
    _require_plain_llama(source, name)
    _require_shared_shape(source, model, name)
    num_layers = source.config.num_hidden_layers
    if beyond := [layer for layer in keep_layers if layer >= num_layers]:
        raise ConfigError(
            f"keep_layers={list(keep_layers)} cannot work with start_from={name!r}, which has no layer"
            f" {beyond[0]}; its layers are 0 to {num_layers - 1}"
        )
    theirs = dict(source.named_parameters())
    with torch.no_grad():
        for ours, parameter in model.named_parameters():
            # A source may have rows of padding behind its vocabulary.
            parameter.copy_(theirs[_name_in_source(ours, keep_layers)][: len(parameter)])


def _require_plain_llama(source: PreTrainedModel, name: str) -> None:
    if not isinstance(source, LlamaForCausalLM):
        raise IncompatibleModels(
            f"start_from={name!r} is a {type(source).__name__}; only a LlamaForCausalLM can be cut"
        )
    config = source.config
    plain = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    if odd := {key: found for key, wanted in plain.items() if (found := getattr(config, key)) != wanted}:
        raise IncompatibleModels(f"start_from={name!r} has {odd}; only a Llama with {plain} can be cut")
    if (kind := _rope(source)["rope_type"]) != "default":
        raise IncompatibleModels(f"start_from={name!r} has rope_type {kind!r}; only 'default' can be cut")


def _require_shared_shape(source: PreTrainedModel, model: LlamaForCausalLM, name: str) -> None:
    pairs = {
        option: (getattr(model.config, attribute), getattr(source.config, attribute))
        for option, attribute in _SHARED.items()
    }
    thetas = (_rope(model)["rope_theta"], _rope(source)["rope_theta"])
    for option, (ours, theirs) in (pairs | {"rope_theta": thetas}).items():
        if ours != theirs:
            raise ConfigError(
                f"{option}={ours!r} cannot work with start_from={name!r}, which has {theirs!r}; give that"
            )


def _rope(model: PreTrainedModel) -> dict[str, Any]:
    parameters: dict[str, Any] = model.config.rope_parameters
    return parameters


def _name_in_source(name: str, keep_layers: tuple[int, ...]) -> str:
    before, found, after = name.partition("model.layers.")
    if not found:
        return name
    layer, _, rest = after.partition(".")
    return f"{before}{found}{keep_layers[int(layer)]}.{rest}"


def hidden_states_at(model: LlamaForCausalLM, token_ids: Tensor, exits: tuple[int, ...]) -> list[Tensor]:
    """What the head reads at each exit, [batch, length, hidden]; an exit is a number of layers passed."""
    num_layers = len(model.model.layers)
    output = model.model(input_ids=token_ids, use_cache=False, output_hidden_states=exits != (num_layers,))
    return [
        output.last_hidden_state if layers == num_layers else model.model.norm(output.hidden_states[layers])
        for layers in exits
    ]


@dataclass(frozen=True, slots=True)
class ExitLoss:
    """Cross entropy at every exit to a mixture of the text's next token and the teacher's law.

    The loss of an exit is (1 - distill_weight) * cross entropy + distill_weight * divergence from the
    teacher, in nats per token; the whole is their mean, with weight 1 for the full depth and exit_weight for
    each earlier exit.
    """

    exit_weight: float
    distill_weight: float

    def __call__(
        self, hidden: list[Tensor], head: nn.Linear, next_ids: Tensor, teacher_logits: Tensor | None
    ) -> Tensor:
        """The loss; hidden [batch, length, hidden] per exit, the full depth last, next_ids [batch, length],
        teacher_logits [batch, length, vocab] or None without a teacher.
        """
        targets = _Targets(
            next_ids.flatten(),
            None if teacher_logits is None else teacher_logits.flatten(0, 1)[:, : head.out_features],
            self.distill_weight,
        )
        *early, full = (states.flatten(0, 1) for states in hidden)
        loss = _loss_at(full, head, targets)
        for states in early:
            every = slice(None, None, _EARLY_STRIDE)
            loss = loss + self.exit_weight * _loss_at(states[every], head, targets.part(every))
        return loss / (1 + self.exit_weight * len(early))


@dataclass(frozen=True, slots=True)
class _Targets:
    """What some rows are to learn."""

    next_ids: Tensor  # [rows]
    teacher_logits: Tensor | None  # [rows, vocab]
    distill_weight: float

    def part(self, rows: slice) -> _Targets:
        theirs = None if self.teacher_logits is None else self.teacher_logits[rows]
        return _Targets(self.next_ids[rows], theirs, self.distill_weight)

    def law(self, vocab_size: int) -> tuple[Tensor, Tensor]:
        """The mixture, [rows, vocab] with rows of sum 1, and the teacher's share of the entropy, summed."""
        if self.teacher_logits is None:
            nothing = torch.zeros((), device=self.next_ids.device)
            return functional.one_hot(self.next_ids, vocab_size).float(), nothing
        log_law = self.teacher_logits.float().log_softmax(-1)
        law = log_law.exp()
        entropy = -self.distill_weight * torch.linalg.vecdot(law, log_law).sum()
        if self.distill_weight < 1:
            law *= self.distill_weight
            law[torch.arange(len(law), device=law.device), self.next_ids] += 1 - self.distill_weight
        return law, entropy


def _loss_at(states: Tensor, head: nn.Linear, targets: _Targets) -> Tensor:
    loss: Tensor = _LinearSoftCrossEntropy.apply(states, head.weight, targets)  # type: ignore[no-untyped-call]
    return loss


class _LinearSoftCrossEntropy(torch.autograd.Function):
    """Head, softmax and loss in one, some rows at a time: logits of a whole batch are never held.

    The gradient of a cross entropy by its logits is known in closed form (softmax minus the law), so forward
    already makes the gradients and backward only scales them. Products with the head are in autocast's dtype.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: _Targets) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        states, matrix = hidden.to(dtype), head.to(dtype)
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head)
        loss = torch.zeros((), device=hidden.device)
        for start in range(0, len(states), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            law, entropy = targets.part(rows).law(len(head))
            logits = (states[rows] @ matrix.T).float()
            loss += logits.logsumexp(-1).sum() - torch.linalg.vecdot(logits, law).sum() - entropy
            gradient = logits.softmax(-1).sub_(law).div_(len(states)).to(dtype)
            grad_hidden[rows] = gradient @ matrix
            grad_head += gradient.T @ states[rows]
        ctx.save_for_backward(grad_hidden, grad_head)
        return loss / len(states)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad_hidden, grad_head = ctx.saved_tensors
        (scale,) = grad_outputs
        return grad_hidden * scale, grad_head * scale, None


@torch.no_grad()
def agreements(
    model: LlamaForCausalLM, teacher: PreTrainedModel, windows: Tensor, exits: tuple[int, ...], first: int
) -> Tensor:
    """At how many positions from `first` on the most likely token is the teacher's; [exits], integers."""
    logits = teacher(input_ids=windows, use_cache=False).logits
    theirs = logits[:, first:, : model.config.vocab_size].argmax(-1)
    states = hidden_states_at(model, windows, exits)
    return torch.stack([(model.lm_head(part[:, first:]).argmax(-1) == theirs).sum() for part in states])
