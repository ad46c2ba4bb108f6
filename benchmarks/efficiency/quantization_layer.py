"""One decoder layer as the list of its operations, for each way to hold weights and activations (Figure 4).

The order is the figure's: add + norm, QKV, rotary and cache, attention, o, add + norm, gate-up, SiLU, down; the
quantisation of activations stands before the product that asks for it, unless norm or SiLU do it themselves. The
operations of a variant are measured one by one and together; all of them work on the same buffers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from modeling_argus.kernels_argus import Kernels, linear
from modeling_argus.quantized_argus import Int8Weight

from . import quantization_kernels as fp8

PRODUCTS = ("qkv", "o", "gate-up", "down")
LARGEST_BATCH = 64  # more rows than this are one prompt, fewer a batch of one token each


@dataclass(frozen=True)
class Dims:
    """A decoder's sizes."""

    hidden: int
    inner: int
    heads: int
    key_heads: int
    head_dim: int
    layers: int
    vocab: int
    eps: float

    @classmethod
    def of(cls, text: dict) -> "Dims":
        """Of a text configuration's arguments."""
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        return cls(
            *(text[n] for n in sizes), head_dim, text["num_hidden_layers"], text["vocab_size"], text["rms_norm_eps"]
        )

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """[N, K] of each product."""
        queries = self.heads * self.head_dim
        return {
            "qkv": (queries + 2 * self.key_heads * self.head_dim, self.hidden),
            "o": (self.hidden, queries),
            "gate-up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }


class Layer(NamedTuple):
    """norms: two float[D]; weights: the four products', in a variant's own form; keys, values: float[B, Hkv, C, d]."""

    norms: tuple
    weights: dict[str, Any]
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Variant:
    """How weights and activations are held.

    Attributes:
        weight: what becomes of a weight float[N, K]; head: of the output head's.
        product: activations (as `quantise` leaves them) and such a weight -> float[M, N].
        add_norm, swiglu: of norms and SiLU; quantised if `fused`.
        quantise: what activations become before a product; None: they stay.
    """

    name: str
    weight: Callable
    product: Callable
    add_norm: Callable
    swiglu: Callable
    quantise: Callable | None = None
    fused: bool = False
    head: Callable = lambda weight: weight


def int8_rows(weight: torch.Tensor) -> Int8Weight:
    """A weight in int8 with one symmetric scale a row, as torchao's `Int8WeightOnlyConfig()` holds it."""
    scales = weight.abs().amax(dim=1).float().clamp(min=1e-12) / 127.5
    values = (weight / scales[:, None]).round().clamp(-128, 127).to(torch.int8)
    return Int8Weight(values, scales.to(weight.dtype))


def widened(x: torch.Tensor, weight: Int8Weight) -> torch.Tensor:
    """torchao's own product: the weights become floats first, at every call."""
    return torch.mm(x, weight.values.t().to(x.dtype)) * weight.scales


def variants(device: torch.device, kernels: Kernels, rows: int) -> list[Variant]:
    """The first is the one that the others are held against."""
    plain = Variant("bf16", lambda w: w, linear, kernels.add_rms_norm, kernels.swiglu)
    if device.type != "cuda":
        own = Variant("int8 weights", int8_rows, linear, plain.add_norm, plain.swiglu, head=int8_rows)
        theirs = Variant("int8 weights, widened", int8_rows, widened, plain.add_norm, plain.swiglu, head=int8_rows)
        return (
            [plain, own, theirs] if rows <= LARGEST_BATCH else [plain, theirs]
        )  # prompts take the modules' way: torchao's
    separate = [
        Variant(f"fp8 by {by}, apart", quantise, fp8.product, plain.add_norm, plain.swiglu, quantise)
        for by, quantise in (("tensor", fp8.quantise_tensor), ("row", fp8.quantise_rows))
    ]
    if fp8.triton is None:
        return [plain, *separate]
    ours = (fp8.product, fp8.add_rms_norm_quantise, fp8.swiglu_quantise, fp8.quantise_fused, True)
    fused = [Variant("fp8 by row, fused", fp8.quantise_rows, *ours)]
    if rows == 1:  # a row is the tensor, and its scale may go to the other of torch's kernels
        fused.append(Variant("fp8 by tensor, fused", fp8.quantise_tensor, fp8.product_of_one_row, *ours[1:]))
    return [plain, *separate, *fused]


def make_layers(variant: Variant, dims: Dims, first: dict, rows: int, capacity: int, like: dict) -> list[Layer]:
    """Every layer has memory of its own, or all would be read from the caches of one; the values are one layer's.

    first: the weights of one layer by name; like: dtype and device. A prompt of `rows` tokens has one cache.
    """
    made = {name: variant.weight(weight) for name, weight in first.items()}
    B = 1 if rows > LARGEST_BATCH else rows
    shape = (B, dims.key_heads, capacity, dims.head_dim)
    return [
        Layer(
            (torch.ones(dims.hidden, **like), torch.ones(dims.hidden, **like)),
            {name: _copy(weight) for name, weight in made.items()},
            torch.randn(shape, **like),
            torch.randn(shape, **like),
        )
        for _ in range(dims.layers)
    ]


def _copy(weight):
    if isinstance(weight, Int8Weight):
        return Int8Weight(*(part.clone() for part in weight))
    return tuple(part.clone() for part in weight) if isinstance(weight, tuple) else weight.clone()


def buffers(dims: Dims, rows: int, context: int, capacity: int, like: dict) -> dict[str, Any]:
    """What the operations read and write, by name."""
    B, T = (rows, 1) if rows <= LARGEST_BATCH else (1, rows)
    bias = torch.zeros(B, capacity, **like)
    bias[:, context + 1 :] = -torch.inf
    angles = torch.randn(B, 1, T, dims.head_dim, **like)
    return {
        "x": torch.randn(rows, dims.hidden, **like),
        "residual": torch.randn(rows, dims.hidden, **like),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "bias": bias,
        "slot": torch.tensor([context], device=like["device"]),
        "span": min(capacity, (context + 64) // 64 * 64),
    }


def operations(variant: Variant, kernels: Kernels, dims: Dims, rows: int) -> dict[str, Callable[[Layer, dict], None]]:
    """The operations of one layer in order: each takes (layer, buffers) and leaves its result in the buffers."""
    found: dict[str, Callable] = {}
    T = rows if rows > LARGEST_BATCH else 1

    def norm(index: int, out: str):
        def run(layer, b):
            b["residual"], b[out] = variant.add_norm(b["x"], b["residual"], layer.norms[index], dims.eps)

        found[f"add + norm {index + 1}"] = run

    def product(name: str, source: str, out: str, already: bool):
        key = source
        if variant.quantise and not already:
            key = f"{source}, quantised"

            def quantise(layer, b):
                b[key] = variant.quantise(b[source])

            found[f"quantise for {name}"] = quantise

        def run(layer, b):
            b[out] = variant.product(b[key], layer.weights[name])

        found[name] = run

    def rotary_and_cache(layer, b):
        qkv = b["qkv"].view(rows // T, T, -1, dims.head_dim).transpose(1, 2)
        qk, v = qkv[:, : -dims.key_heads], qkv[:, -dims.key_heads :]
        qk = kernels.rotary(qk, b["cos"], b["sin"])
        if T == 1:
            layer.keys.index_copy_(2, b["slot"], qk[:, -dims.key_heads :])
            layer.values.index_copy_(2, b["slot"], v)
        else:
            layer.keys[:, :, :T], layer.values[:, :, :T] = qk[:, -dims.key_heads :], v
        b["q"] = qk[:, : -dims.key_heads]

    def attention(layer, b):
        if T == 1:
            b["attended"] = kernels.decode_attention(
                b["q"][:, :, 0], layer.keys, layer.values, b["bias"], b["slot"], b["span"]
            )
        else:
            keys, values = layer.keys[:, :, :T], layer.values[:, :, :T]
            out = F.scaled_dot_product_attention(b["q"], keys, values, is_causal=True, enable_gqa=True)
            b["attended"] = out.transpose(1, 2).reshape(T, -1)

    def silu(layer, b):
        b["activated"] = variant.swiglu(b["gate_up"])

    norm(0, "normed")
    product("qkv", "normed", "qkv", variant.fused)
    found["rotary + cache"] = rotary_and_cache
    found["attention"] = attention
    product("o", "attended", "x", False)
    norm(1, "normed again")
    product("gate-up", "normed again", "gate_up", variant.fused)
    found["SiLU"] = silu
    product("down", "activated", "x", variant.fused)
    return found


def five_kernels(kernels: Kernels, dims: Dims, layers: list[Layer], b: dict) -> Callable[[], torch.Tensor]:
    """A step of all layers, x float[B, D] to the same, by the decoding loop's own five operations a layer."""
    B = b["x"].shape[0]
    cos, sin = b["cos"].view(B, -1), b["sin"].view(B, -1)

    def step():
        x = b["x"]
        for layer in layers:
            (first, second), w = layer.norms, layer.weights
            q = kernels.norm_qkv_rotary(
                x, first, dims.eps, w["qkv"], None, cos, sin, layer.keys, layer.values, b["slot"]
            )
            attended = kernels.decode_attention(q, layer.keys, layer.values, b["bias"], b["slot"], b["span"])
            x = kernels.linear_add(attended, w["o"], x)
            x = kernels.linear_add(kernels.norm_gate_up(x, second, dims.eps, w["gate-up"]), w["down"], x)
        return x

    return step
