"""Reads a decoder off its modules: which matrices, norms and activations, and how they are connected.

By the names and shapes of what a block contains, never by the name of the model. What is read may still be
wrong (a model may compute something else with the same parts), so logits are compared before it is used.
Knows the block of Llama and its kin: norms before or after each half, one or two of them, parallel halves,
gated or plain MLP, grouped queries, query and key norms, rotary positions in two halves, windows.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hasten.models.forwards.compiled.products import LANES
from hasten.models.forwards.compiled.rows import ACTIVATIONS, LAYER_NORM, RMS_NORM
from hasten.models.forwards.compiled.tiles import scaled
from hasten.models.forwards.stand_in import is_plain
from hasten.models.sessions.attention import AttentionKinds

Norms = list[nn.Module | None]
_SOME_TOKENS = 4096
_TURNING_ROTARY = ("dynamic", "longrope")  # their angles depend on the length of the text


class Unsupported(Exception):
    """A model that the compiled pass does not know; the message says why."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Linear layers that are multiplied as one matrix."""

    parent: nn.Module
    names: tuple[str, ...]
    turns: int = 1
    """2: tiles of the first and of the second half of the outputs alternate"""
    order: torch.Tensor | None = None
    """of a single layer: its outputs in the order of the tiles"""

    @property
    def layers(self) -> list[nn.Linear]:
        return [getattr(self.parent, name) for name in self.names]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    matrices: tuple[Matrix, Matrix, Matrix, Matrix]
    """queries with keys and values, output, up (gate and up), down"""
    norms: Norms
    """before and after attention, before and after the MLP, of queries, of keys"""
    mask_kind: int
    angle_kind: str | None
    """"" where the model has one kind of rotary angles; None without any"""


@dataclass(frozen=True, slots=True)
class Blueprint:
    layers: list[LayerPlan]
    last_norm: nn.Module
    head: Matrix
    embedding: tuple[nn.Module, str]
    is_tied: bool
    rotary: nn.Module
    sizes: dict[str, Any]
    """the fields of arguments.Model that are numbers"""


def read_blueprint(model: Any) -> Blueprint:
    """Raises Unsupported."""
    try:
        return _read(model)
    except (AttributeError, KeyError, TypeError, IndexError) as problem:
        raise Unsupported(f"its modules are arranged in another way ({problem})") from problem


def _read(model: Any) -> Blueprint:
    config = model.config.get_text_config(decoder=True)
    base = model.base_model
    if type(base.layers) is not nn.ModuleList:
        raise Unsupported("its layers are not a plain list")
    head_parent, head_name = _find(model, model.get_output_embeddings())
    embedding = model.get_input_embeddings()
    rotary = base.rotary_emb
    types = getattr(config, "layer_types", None) or [""] * len(base.layers)
    mask_kinds = sorted(set(types)) if types[0] else [""]
    if len(AttentionKinds.of(config).sizes) != len(mask_kinds):
        raise Unsupported("its layers attend in a way that masks do not tell")
    angle_kinds = types if "layer_type" in inspect.signature(rotary.forward).parameters else [""] * len(types)
    layers = [
        _read_layer(layer, mask_kinds.index(kind), angle_kind)
        for layer, kind, angle_kind in zip(base.layers, types, angle_kinds, strict=True)
    ]
    _refuse_what_depends_on_length(config)
    head = Matrix(head_parent, (head_name,))
    if type(head.layers[0]) is not nn.Linear:
        raise Unsupported(f"its head is a {type(head.layers[0]).__name__}")
    last_norm = _last_norm(base)
    _refuse_other_weights(model, layers, [last_norm, *head.layers, embedding])
    return Blueprint(
        layers,
        last_norm,
        head,
        _find(model, embedding),
        embedding.weight is head.layers[0].weight,
        rotary,
        _sizes(config, base, layers, model),
    )


def _find(model: nn.Module, wanted: Any) -> tuple[nn.Module, str]:
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is wanted
    ]
    if len(found) != 1:
        raise Unsupported("its head or its embedding is not a module of its own")
    return found[0]


def _first(parent: nn.Module, *names: str) -> Any:
    for name in names:
        if (found := getattr(parent, name, None)) is not None:
            return found
    raise Unsupported(f"{type(parent).__name__} has none of {', '.join(names)}")


def _refuse_what_depends_on_length(config: Any) -> None:
    """No short text shows these differences."""
    rope = getattr(config, "rope_parameters", None) or {}
    for one in [value for value in rope.values() if isinstance(value, dict)] or [rope]:
        if one.get("rope_type") in _TURNING_ROTARY:
            raise Unsupported("its rotary angles depend on the length of the text")
        if one.get("llama_4_scaling_beta"):
            raise Unsupported("its attention becomes sharper along the text")


def _refuse_other_weights(model: Any, layers: list[LayerPlan], others: list[Any]) -> None:
    """A weight that nothing here reads may do nothing in the short text that logits are compared on."""
    read = [*others, *(norm for layer in layers for norm in layer.norms if norm is not None)]
    read += [linear for layer in layers for matrix in layer.matrices for linear in matrix.layers]
    for module in model.modules():
        if not is_plain(module):
            raise Unsupported(f"a {type(module).__name__} of it has hooks or a forward of its own")
    weights = [linear.weight for layer in layers for matrix in layer.matrices for linear in matrix.layers]
    if len({id(one) for one in [*weights, others[-1].weight]}) <= len(weights):
        raise Unsupported("its layers share weights")
    known = {id(parameter) for module in read for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            raise Unsupported(f"it has a weight it does not know, {name}")
    shapes = {
        tuple(linear.weight.shape for matrix in layer.matrices for linear in matrix.layers)
        for layer in layers
    }
    if len(shapes) > 1:
        raise Unsupported("its layers are not all of one size")


def _read_layer(layer: Any, mask_kind: int, angle_kind: str) -> LayerPlan:
    attention, mlp = _first(layer, "self_attn", "attention"), layer.mlp
    uses_rotary = bool(getattr(attention, "use_rope", True))
    matrices = (
        _queries_keys_values(attention),
        Matrix(attention, (_name(attention, "o_proj", "dense"),)),
        _up(mlp),
        Matrix(mlp, (_name(mlp, "down_proj", "fc2", "dense_4h_to_h", "c_proj"),)),
    )
    for matrix in matrices:
        for linear in matrix.layers:
            if type(linear) is not nn.Linear or linear.in_features % 2:
                raise Unsupported(
                    f"{type(linear).__name__} of {tuple(linear.weight.shape)} is no layer it knows"
                )
            if linear.out_features % LANES and matrix is not matrices[1] and matrix is not matrices[3]:
                raise Unsupported(f"a layer has {linear.out_features} outputs, no multiple of {LANES}")
    children = dict(layer.named_children())
    known = {"self_attn", "attention", "mlp", *_LAYER_NORMS}
    known |= {name for name, child in children.items() if isinstance(child, nn.Dropout)}
    if unknown := set(children) - known:
        raise Unsupported(f"its layers have a part named {min(unknown)}")
    return LayerPlan(matrices, _norms(layer, attention), mask_kind, angle_kind if uses_rotary else None)


_LAYER_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _norms(layer: Any, attention: Any) -> Norms:
    before, middle, before_mlp, after_mlp = (getattr(layer, name, None) for name in _LAYER_NORMS)
    of_heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    if of_heads[0] is None:
        of_heads = [getattr(attention, name, None) for name in ("q_layernorm", "k_layernorm")]
    if before_mlp is not None or before is None:  # then the one in the middle belongs to attention's output
        return [before, middle, before_mlp, after_mlp, *of_heads]
    return [before, None, before if middle is None else middle, after_mlp, *of_heads]


def _name(parent: nn.Module, *names: str) -> str:
    children = dict(parent.named_children())
    for name in names:
        if name in children:
            return name
    raise Unsupported(f"{type(parent).__name__} has none of {', '.join(names)}")


def _queries_keys_values(attention: Any) -> Matrix:
    names = dict(attention.named_children())
    if "q_proj" in names:
        return Matrix(attention, ("q_proj", "k_proj", "v_proj"))
    if "qkv_proj" in names:
        return Matrix(attention, ("qkv_proj",))
    if "query_key_value" in names:  # queries, keys and values of one head after those of the other
        outputs, size = attention.query_key_value.out_features, attention.head_size
        order = torch.arange(outputs).view(-1, 3, size).transpose(0, 1).reshape(-1)
        return Matrix(attention, ("query_key_value",), order=order)
    raise Unsupported(f"{type(attention).__name__} has no projections it knows")


def _up(mlp: Any) -> Matrix:
    names = dict(mlp.named_children())
    if "gate_proj" in names:
        return Matrix(mlp, ("gate_proj", "up_proj"), turns=2)
    if "gate_up_proj" in names:
        return Matrix(mlp, ("gate_up_proj",), turns=2)
    return Matrix(mlp, (_name(mlp, "fc1", "dense_h_to_4h", "c_fc"),))


def _sizes(config: Any, base: Any, layers: list[LayerPlan], model: Any) -> dict[str, Any]:
    qkv, out, _, down = (matrix.layers for matrix in layers[0].matrices)
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    heads = config.num_attention_heads
    head_size = out[0].in_features // heads
    if sum(layer.out_features for layer in qkv) != (heads + 2 * kv_heads) * head_size:
        raise Unsupported("its projections have other sizes than its heads")
    facts = [_layer_sizes(plan, layer, head_size) for plan, layer in zip(layers, base.layers, strict=True)]
    last_norm = _last_norm(base)
    facts.append({**facts[0], "norm_kind": norm_kind(last_norm), "eps": _eps(last_norm)})
    if different := {name for one in facts for name in one if one[name] != facts[0][name]}:
        raise Unsupported(f"its layers differ in {min(different)}")
    embedding = model.get_input_embeddings()
    return {
        **facts[0],
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_size": head_size,
        "hidden_size": qkv[0].in_features,
        "inner_size": down[0].in_features,
        "embedding_scale": _embedding_scale(embedding) * float(getattr(base, "embedding_multiplier", 1.0)),
        "logit_scale": 1.0 / float(getattr(config, "logits_scaling", 1.0)),
        "logit_cap": float(getattr(config, "final_logit_softcapping", None) or 0.0),
    }


def _layer_sizes(plan: LayerPlan, layer: Any, head_size: int) -> dict[str, Any]:
    """What the compiled pass takes to be the same in all layers."""
    attention: Any = plan.matrices[0].parent
    norms = [norm for norm in plan.norms if norm is not None]
    kinds = {(norm_kind(norm), _eps(norm)) for norm in norms}
    if len(kinds) != 1:
        raise Unsupported("its norms are of several kinds")
    [(kind, eps)] = kinds
    of_queries: Any = plan.norms[4]
    before, before_mlp = plan.norms[0], plan.norms[2]
    middle = before is not None and before is before_mlp  # one norm for both halves: they run side by side
    return {
        "norm_kind": kind,
        "eps": eps,
        "is_norm_of_all_heads": of_queries is not None and of_queries.weight.numel() != head_size,
        "activation": _activation(_first(plan.matrices[2].parent, *_ACTIVATION_NAMES)),
        "is_gated": plan.matrices[2].turns == 2,
        "is_parallel": bool(getattr(layer, "use_parallel_residual", middle)) or middle,
        "score_scale": float(attention.scaling),
        "score_cap": float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        "residual_scale": float(getattr(layer, "residual_multiplier", 1.0)),
    }


def _last_norm(base: Any) -> Any:
    return _first(base, "norm", "final_layernorm", "final_layer_norm")


def _embedding_scale(embedding: Any) -> float:
    """Looked up rows are compared bit for bit: no logits of a short text show what a rare token gets."""
    is_simple = isinstance(embedding, nn.Embedding) and embedding.max_norm is None
    if not is_simple or len(list(embedding.parameters())) > 1:
        raise Unsupported(f"{type(embedding).__name__} does more than look rows up")
    weight = embedding.weight.detach()
    some = torch.linspace(0, len(weight) - 1, min(len(weight), _SOME_TOKENS)).long()
    some = torch.cat((some, torch.tensor([embedding.padding_idx or 0])))
    with torch.no_grad():
        if not torch.equal(embedding(some), scaled(weight[some], embedding)):
            raise Unsupported(f"{type(embedding).__name__} does more than look rows up")
    return float(scaled(torch.ones((), dtype=weight.dtype), embedding))


_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")


def _activation(function: Any) -> int:
    x = torch.cat((torch.linspace(-6, 6, 97), *(size * torch.linspace(-1, 1, 9) for size in (30, 100, 1e4))))
    known = {
        "silu": functional.silu(x),
        "gelu_tanh": functional.gelu(x, approximate="tanh"),
        "gelu": functional.gelu(x),
        "relu": functional.relu(x),
        "relu2": functional.relu(x) ** 2,
    }
    given = function(x)
    for index, name in enumerate(ACTIVATIONS):
        if torch.allclose(given, known[name], atol=1e-5, rtol=1e-5):
            return index
    raise Unsupported(f"{type(function).__name__} is no activation it knows")


def _eps(norm: Any) -> float:
    found = getattr(norm, "eps", None)
    return float(norm.variance_epsilon if found is None else found)


def norm_kind(norm: Any) -> int:
    """Found out by trying. Raises Unsupported."""
    return _norm_parameters(norm)[0]


def norm_vectors(norm: Any) -> torch.Tensor:
    """Weights, then biases, float32."""
    return torch.cat(_norm_parameters(norm)[1:])


def _norm_parameters(norm: Any) -> tuple[int, torch.Tensor, torch.Tensor]:
    single = copy.deepcopy(norm).float()
    weight = single.weight.detach()
    bias = getattr(single, "bias", None)
    bias = torch.zeros_like(weight) if bias is None else bias.detach()
    x = torch.linspace(-1, 3, weight.numel())[torch.randperm(weight.numel(), generator=torch.Generator())]
    x = torch.stack([size * x for size in (1.0, 1e-4, 1e4)])  # of small values, eps is the larger part
    expected = single(x).detach()
    square = x / (x.square().mean(-1, keepdim=True) + _eps(norm)).sqrt()
    centred = functional.layer_norm(x, x.shape[-1:], eps=_eps(norm))
    for kind, even, factor in (
        (RMS_NORM, square, weight),
        (RMS_NORM, square, 1 + weight),
        (LAYER_NORM, centred, weight),
    ):
        if torch.allclose(even * factor + bias, expected, atol=1e-5, rtol=1e-4):
            return kind, factor, bias
    raise Unsupported(f"{type(norm).__name__} is no norm it knows")
