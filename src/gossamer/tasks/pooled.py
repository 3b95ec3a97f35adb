"""A backbone whose last hidden states are averaged into one vector a text: the model of `embed`. It has no weights of its own.

Mean pooling: the mean over the tokens that the attention mask keeps, specials among them (Reimers and Gurevych 2019), in float32.
The losses, of a batch of pairs (a_i, b_i) with cosines c_ij = cos(a_i, b_j):

* contrastive: mean_i −log (exp(c_ii / τ) / Σ_j exp(c_ij / τ)), every other b_j of the batch a negative (Henderson et al. 2017,
  multiple negatives ranking; InfoNCE of van den Oord et al. 2018). Where we deviate: rows that agree in either text are not
  each other's negatives, since their pairing would be as right. A batch of one pair has no negatives and the loss 0.
* cosine: the mean of (c_ii − label_i)².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize
from transformers.utils.generic import ModelOutput

SECOND = "_b"  # ends the names of the second text's inputs


@dataclass
class PooledOutput(ModelOutput):
    """`embedding` and `embedding_b`: float32 [texts, width]; `loss` where labels were given."""

    loss: Tensor | None = None
    embedding: Tensor | None = None
    embedding_b: Tensor | None = None


class Pooled(nn.Module):
    """See the module.

    Args:
        backbone: a model whose output has a `last_hidden_state` [texts, tokens, width].
        loss: "contrastive" or "cosine".
        temperature: τ.
        normalized: whether the vectors are scaled to length 1; cosines are the same either way.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the batch, which Trainer must divide by accumulation

    def __init__(self, backbone: nn.Module, *, loss: str, temperature: float, normalized: bool) -> None:
        super().__init__()
        self.backbone, self.loss, self.temperature, self.normalized = backbone, loss, temperature, normalized

    @property
    def base_model(self) -> nn.Module:
        """By which the backbone is found; names in a delta are relative to it."""
        return self.backbone

    @property
    def config(self) -> Any:
        return self.backbone.config

    def save_pretrained(self, *args: Any, **settings: Any) -> None:
        """Saves the backbone: all that there is to save."""
        self.backbone.save_pretrained(*args, **settings)  # type: ignore[operator]

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> PooledOutput:
        """The vectors of one text, or of pairs, whose second text's inputs are named with "_b" at the end.

        Args:
            labels: [pairs], the cosine that each pair should have; of contrastive pairs the values do not matter.
            inputs: the backbone's own, input_ids and attention_mask [texts, tokens] among them.
        """
        second = {name.removesuffix(SECOND): x for name, x in inputs.items() if name.endswith(SECOND)}
        first = {name: x for name, x in inputs.items() if not name.endswith(SECOND)}
        a, b = self._pool(first), self._pool(second) if second else None
        loss = None
        if labels is not None and b is not None:
            if self.loss == "contrastive":
                same = _same(first) | _same(second)
                loss = contrastive(a, b, temperature=self.temperature, same=same)
            else:
                loss = mse_loss(cosine_similarity(a, b), labels.float())
        return PooledOutput(loss=loss, embedding=a, embedding_b=b)

    def _pool(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.backbone(**inputs).last_hidden_state
        mean = pooled(hidden, inputs["attention_mask"])
        return normalize(mean, dim=-1) if self.normalized else mean


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of each text's kept states, float32.

    >>> hidden = torch.tensor([[[1.0, 0], [3, 2], [9, 9]], [[4.0, 4], [9, 9], [9, 9]]])
    >>> pooled(hidden, torch.tensor([[1, 1, 0], [1, 0, 0]])).tolist()
    [[2.0, 1.0], [4.0, 4.0]]
    """
    kept = mask[..., None].to(hidden.dtype)
    return (hidden * kept).float().sum(1) / kept.float().sum(1).clamp(min=1)


def contrastive(a: Tensor, b: Tensor, *, temperature: float, same: Tensor) -> Tensor:
    """The contrastive loss of pairs of vectors [pairs, width]; `same`, bool [pairs, pairs], says which are no negatives.

    >>> eye = torch.eye(2)
    >>> round(contrastive(eye, eye, temperature=1.0, same=torch.zeros(2, 2, dtype=torch.bool)).item(), 4)  # log(1 + 1/e)
    0.3133
    """
    cosines = normalize(a, dim=-1) @ normalize(b, dim=-1).T / temperature  # [pairs, pairs]
    own = torch.eye(len(a), dtype=torch.bool, device=a.device)
    return cross_entropy(cosines.masked_fill(same & ~own, -torch.inf), torch.arange(len(a), device=a.device))


def _same(inputs: dict[str, Tensor]) -> Tensor:
    """Which texts of a batch have the same tokens, bool [texts, texts]."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    shown = torch.where(mask.bool(), ids, -1)
    return (shown[:, None] == shown[None]).all(-1)
