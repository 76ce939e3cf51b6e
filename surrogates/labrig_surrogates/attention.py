"""`AnalogMultiheadAttention`: the projections of queries, keys, values and outputs are analog, attention is digital."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from labrig_surrogates.analog_config import AnalogConfig
from labrig_surrogates.core import AnalogCore
from labrig_surrogates.errors import SurrogateError
from labrig_surrogates.layers import AnalogLinear, WeightMatrix, noise_seed
from labrig_surrogates.products import LinearProduct


class AnalogMultiheadAttention(nn.Module):
    """Multi-head attention.

    Queries, keys and values have arrays of their own, also where the digital layer keeps them in one parameter.
    `bias_k`, `bias_v` and `add_zero_attn` are refused.

    Args:
        attention: The digital layer; its parameters, the same objects, are taken with their names.
        config: What is not ideal about the arrays.
        name: First part of the names of the tiles.
        seed: Of the noise; None takes one from torch's own generator.
        stream: Number of the first of its four cores among those with the same seed.

    Raises:
        SurrogateError: The layer has biases of keys and values or an added zero, or the config does not fit.
    """

    in_proj_weight: Tensor
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor

    def __init__(
        self,
        attention: nn.MultiheadAttention,
        config: AnalogConfig,
        *,
        name: str = "attention",
        seed: int | None = None,
        stream: int = 0,
    ) -> None:
        super().__init__()
        if attention.bias_k is not None or attention.bias_v is not None or attention.add_zero_attn:
            raise SurrogateError(
                f"layer {name!r}: attention with bias_k, bias_v or add_zero_attn has no analog form here"
            )
        if config.digital.scale:
            raise SurrogateError(f"layer {name!r}: digital.scale has no place in the projections; switch it off")
        self.embed_dim, self.kdim, self.vdim = attention.embed_dim, attention.kdim, attention.vdim
        self.num_heads, self.dropout, self.batch_first = attention.num_heads, attention.dropout, attention.batch_first
        # `nn.TransformerEncoderLayer` would take a fused kernel past the arrays in evaluation, were this True.
        self._qkv_same_embed_dim = False
        self.one_parameter = attention.in_proj_weight is not None
        for parameter in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            self.register_parameter(parameter, getattr(attention, parameter))
        chosen = noise_seed(None) if seed is None else seed
        self.in_cores = nn.ModuleDict()
        for number, (part, weight) in enumerate(self._in_weights().items()):
            core = AnalogCore(
                weight, LinearProduct(), config, name=f"{name}.{part}", seed=chosen, stream=stream + number
            )
            self.in_cores[part] = core
        self.out_proj = AnalogLinear.around(
            attention.out_proj, config, name=f"{name}.out", seed=chosen, stream=stream + 3
        )

    def _in_weights(self) -> dict[str, Tensor]:
        if self.one_parameter:
            return dict(zip(("q", "k", "v"), self.in_proj_weight.chunk(3), strict=True))
        return {"q": self.q_proj_weight, "k": self.k_proj_weight, "v": self.v_proj_weight}

    def matrices(self) -> list[WeightMatrix]:
        """Weights of queries, keys and values; those of the output are a layer of their own."""
        return [WeightMatrix(self._core_of(part), weight) for part, weight in self._in_weights().items()]

    def _core_of(self, part: str) -> AnalogCore:
        core = self.in_cores[part]
        assert isinstance(core, AnalogCore)
        return core

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention with the arguments, shapes and results of `nn.MultiheadAttention`."""
        single = query.dim() == 2
        inputs = [query, key, value]
        if single:
            inputs = [x.unsqueeze(0) for x in inputs]
        elif not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = [
            self._core_of(part)(x, weight, bias)
            for (part, weight), x, bias in zip(self._in_weights().items(), inputs, biases, strict=True)
        ]
        heads = [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected]
        mask = self._mask(attn_mask, key_padding_mask, heads[0], heads[1], is_causal)
        mixed, weights = self._attend(heads[0], heads[1], heads[2], mask, need_weights)
        outputs: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(-2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if single:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        rate = self.dropout if self.training else 0.0
        if not need_weights:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate), None
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = functional.dropout(weights, rate)
        return weights @ value, weights

    def _mask(
        self, mask: Tensor | None, padding: Tensor | None, query: Tensor, key: Tensor, is_causal: bool
    ) -> Tensor | None:
        """Both masks as one that is added to the scores, `[batch or 1, heads or 1, queries or 1, keys]`."""
        if mask is None and is_causal:
            raise SurrogateError("is_causal is a hint on attn_mask: give that as well")
        total: Tensor | None = None
        if mask is not None:
            added = _additive(mask, query)
            total = added.view(-1, self.num_heads, *added.shape[1:]) if added.dim() == 3 else added
        if padding is not None:
            added = _additive(padding, query)
            added = added.view(-1, 1, 1, key.shape[-2])
            total = added if total is None else total + added
        return total

    def extra_repr(self) -> str:
        """Sizes and path."""
        path = self._core_of("q").path
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}, {path}"


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask that says True where not to look, as numbers to be added."""
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return like.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
