"""A biaffine parser over a pretrained backbone (Dozat & Manning 2017; over transformers Glavaš & Vulić 2021, Ansell et al. 2022).

A word is the mean of its sub-words' last states, ROOT a learned vector r. With h, d = layers of one MLP each (head, dependent),

    arc[i, j]    = hᵃ_j · U dᵃ_i + u · hᵃ_j                        word i has head j; j = 0 is ROOT
    rel[i, l]    = [hʳ_j; 1] · W_l [dʳ_i; 1]                       relation l to the head j
    loss         = CE(arc, gold head) + CE(rel at the gold head, gold relation), means over words

Root words are words: they count in both terms. Padding is -100. Deviations: ReLU is leaky, a word cannot choose itself, and
bilinear weights begin at random, not 0, so that gradients of an untrained head say something about the base.

Sequences beyond `window` tokens are read in overlapping windows, half a window apart, each with the first token (`[CLS]`) before
it; a token's state is that of the window where it is most central. So no sentence is cut, whatever the base's positions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from gossamer.tasks.arborescence import decode


@dataclass
class Parsed(ModelOutput):
    """What a forward gives; n is the number of words of the longest sentence.

    Shapes:
        loss: [], when labels are given.
        heads: int64 [b, n], decoded heads (0 for padding); None while a loss is being differentiated.
        rel_scores: float [b, n, relations], at the decoded heads, or at the gold ones where `heads` is None.
        arc_scores: float [b, n, n + 1], -inf for arcs that cannot be.
    """

    loss: Tensor | None = None
    heads: Tensor | None = None
    rel_scores: Tensor | None = None
    arc_scores: Tensor | None = None


class BiaffineParser(nn.Module):
    """See the file's head. `backbone` is the base; all other parameters are the task's head."""

    def __init__(
        self,
        backbone: nn.Module,
        relations: int,
        *,
        arc_size: int = 256,
        rel_size: int = 64,
        dropout: float = 0.33,
        window: int = 256,
        tree: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config: Any = copy.deepcopy(backbone.config)  # Trainer reads it
        self.config.keys_to_ignore_at_inference = ["arc_scores"]  # n differs between batches: it cannot be concatenated
        width: int = self.config.hidden_size
        self.window, self.tree = window, tree
        self.root = nn.Parameter(torch.randn(width))  # as large as a normalized state
        self.arc_head, self.arc_dependent = nn.Linear(width, arc_size), nn.Linear(width, arc_size)
        self.rel_head, self.rel_dependent = nn.Linear(width, rel_size), nn.Linear(width, rel_size)
        self.arc = nn.Parameter(torch.randn(arc_size + 1, arc_size) / arc_size)
        self.rel = nn.Parameter(torch.randn(relations, rel_size + 1, rel_size + 1) / rel_size)
        self.dropout = nn.Dropout(dropout)

    @property
    def base_model(self) -> nn.Module:
        """The pretrained part, where gossamer looks for it."""
        return self.backbone

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """As of any transformers model."""
        self.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs)  # type: ignore[operator]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, words: Tensor, labels: Tensor | None = None) -> Parsed:
        """Scores, decoded heads, and the loss when labels are given.

        Args:
            input_ids: int64 [b, t], padded on the right.
            attention_mask: int64 [b, t].
            words: int64 [b, t], the word that a token is a part of, from 0; -1 for special tokens and padding.
            labels: int64 [b, n, 2], head (0 is ROOT) and relation of each word; -100 for padding, and for a relation that was
                not seen in training.
        """
        states = self._states(input_ids, attention_mask)
        with torch.autocast(states.device.type, enabled=False):  # scores of half precision would tie
            # rows cut out of a batch, as rules do, bring the padding of its longest sentence with them
            n = int(words.max()) + 1 if labels is None else labels.shape[1]
            nodes = self.dropout(self._nodes(states.to(self.root.dtype), words, n))  # [b, n + 1, width], ROOT first
            arcs = self._arcs(nodes).float().masked_fill(~_possible(words, n), -torch.inf)
            relate = (
                self.dropout(F.leaky_relu(self.rel_head(nodes))),
                self.dropout(F.leaky_relu(self.rel_dependent(nodes))),
            )
            loss = heads = scores = None
            if labels is not None:
                gold, kinds = labels.unbind(-1)
                scores = self._relations(*relate, gold.clamp(min=0))
                loss = _mean_loss(arcs, gold) + _mean_loss(scores, kinds)
            if labels is None or not torch.is_grad_enabled():
                found = decode(arcs.detach().cpu().numpy(), (words.amax(1) + 1).cpu().numpy(), tree=self.tree)
                heads = torch.from_numpy(np.ascontiguousarray(found)).to(arcs.device)
                scores = self._relations(*relate, heads)
        return Parsed(loss=loss, heads=heads, rel_scores=scores, arc_scores=arcs)

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The backbone's last states [b, t, width]; those of a sentence do not depend on what shares its batch."""
        if ids.shape[1] <= self.window:
            return self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        lengths = mask.sum(1)
        short = torch.nonzero(lengths <= self.window).flatten()
        found: list[tuple[Tensor, Tensor]] = []  # rows, and their states
        if short.numel():
            cut = ids[short, : self.window], mask[short, : self.window]
            found.append((short, self.backbone(input_ids=cut[0], attention_mask=cut[1]).last_hidden_state))
        for row in torch.nonzero(lengths > self.window):
            n = int(lengths[row])
            found.append((row, self._windows(ids[row, :n], mask[row, :n])))
        rows = torch.cat([row for row, _ in found]).argsort()
        return torch.cat([F.pad(states, (0, 0, 0, ids.shape[1] - states.shape[1])) for _, states in found])[rows]

    def _windows(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The states [1, t, width] of one sentence that is longer than a window."""
        total, width = ids.shape[1], self.window - 1
        stride = width // 2
        pieces: list[Tensor] = []
        start, done = 1, 0  # the window's first token, and the tokens whose states are known
        while done < total:
            end = min(start + width, total)
            seen = torch.cat([ids[:, :1], ids[:, start:end]], 1), torch.cat([mask[:, :1], mask[:, start:end]], 1)
            states = self.backbone(input_ids=seen[0], attention_mask=seen[1]).last_hidden_state
            if not pieces:
                pieces.append(states[:, :1])
                done = 1
            until = total if end == total else end - (width - stride) // 2  # the middle of what the next one sees too
            pieces.append(states[:, 1 + done - start : 1 + until - start])
            start, done = start + stride, until
        return torch.cat(pieces, 1)

    def _nodes(self, states: Tensor, words: Tensor, n: int) -> Tensor:
        """ROOT and the words: [b, n + 1, width]. A product, not a scatter: the same on every device, run after run."""
        index = torch.arange(n, device=words.device)
        member = (words[:, None] == index[:, None]).to(states.dtype)  # [b, n, t]
        means = member @ states / member.sum(-1, keepdim=True).clamp(min=1)
        return torch.cat([self.root.expand(len(means), 1, -1), means], 1)

    def _arcs(self, nodes: Tensor) -> Tensor:
        head = self.dropout(F.leaky_relu(self.arc_head(nodes)))
        dependent = self.dropout(F.leaky_relu(self.arc_dependent(nodes[:, 1:])))
        return _with_one(dependent) @ self.arc @ head.transpose(1, 2)

    def _relations(self, head: Tensor, dependent: Tensor, heads: Tensor) -> Tensor:
        """Scores [b, n, relations] at one head a word."""
        chosen = head.gather(1, heads[..., None].expand(-1, -1, head.shape[-1]))
        return torch.einsum("bnd,rde,bne->bnr", _with_one(chosen), self.rel, _with_one(dependent[:, 1:])).float()


def _possible(words: Tensor, n: int) -> Tensor:
    """Which arcs can be, bool [b, n, n + 1]: from ROOT, or from another word of the sentence."""
    lengths = words.amax(1) + 1
    place = torch.arange(n + 1, device=words.device)
    return (place <= lengths[:, None])[:, None] & (place != place[1:, None])


def _with_one(values: Tensor) -> Tensor:
    return F.pad(values, (0, 1), value=1.0)


def _mean_loss(scores: Tensor, gold: Tensor) -> Tensor:
    """Cross-entropy, mean over what is not -100; 0 where that is nothing."""
    total = F.cross_entropy(scores.flatten(0, 1), gold.flatten(), ignore_index=-100, reduction="sum")
    return total / (gold != -100).sum().clamp(min=1)
