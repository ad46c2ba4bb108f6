"""The model as it is trained: the same weights, with losses that never make logits for what is not learnt from.

The output head runs over the assistant's tokens alone; on a GPU with Liger it is fused with the cross-entropy, and no
logits are made at all. It is a subclass and no wrapper, so that DDP and FSDP see one forward, and checkpoints keep
their names.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import ModelOutput

from modeling_argus import ArgusForConditionalGeneration

from .collate import IGNORED

# Cosines times this are the naming loss's logits: half a unit apart is 20,000 to one, which leaves the visual tokens
# half of their length for where things are.
NAMING_SCALE = 20.0


@dataclass
class TrainingOutput(ModelOutput):
    """`loss` is what is minimised; `answer_loss` Equation 1 over this batch's tokens, `naming_loss` the second one."""

    loss: torch.FloatTensor | None = None
    answer_loss: torch.FloatTensor | None = None
    naming_loss: torch.FloatTensor | None = None


class ArgusForTraining(ArgusForConditionalGeneration):
    """An Argus that takes `Collator`'s batches and returns losses, weighted as `StageConfig` says."""

    answer_weight, naming_weight = 1.0, 0.0

    def forward(
        self,
        input_ids,
        labels=None,
        attention_mask=None,
        pixel_values=None,
        position_ids=None,
        segments=None,
        label_weights=None,
        names=None,
        num_items_in_batch=None,
        **kwargs,
    ):
        """See `Collator` for the arguments; without labels it is the model's own forward.

        num_items_in_batch: labels of the whole step, over accumulated batches and processes, which the sum of the
        losses is divided by (the Trainer passes it); else those of this batch.

        Raises:
            ValueError: branches with an attention implementation that takes no masks of its own.
        """
        if labels is None:
            kwargs |= {"pixel_values": pixel_values, "position_ids": position_ids}
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        count = max(1, (labels != IGNORED).sum()) if num_items_in_batch is None else num_items_in_batch
        share = (labels != IGNORED).sum() / count  # of the step, for what is a mean over a batch
        if not self.answer_weight:
            naming = self._naming_loss(self.model.get_image_features(pixel_values).pooler_output, names)
            return TrainingOutput(loss=self.naming_weight * naming * share, naming_loss=naming.detach())
        if segments is not None:
            attention_mask = self._branch_mask(segments)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            position_ids=position_ids,
            use_cache=False,
            return_dict=True,
        )
        targets = labels[:, 1:]
        wanted = targets != IGNORED
        hidden, targets = outputs.last_hidden_state[:, :-1][wanted], targets[wanted]
        weights = None if label_weights is None else label_weights[:, 1:][wanted]
        weighted, plain = self._answer_losses(hidden, targets, weights)
        loss, naming = self.answer_weight * weighted / count, None
        if names is not None and self.naming_weight:
            naming = self._naming_loss(outputs.image_hidden_states, names)
            loss = loss + self.naming_weight * naming * share
        return TrainingOutput(
            loss=loss,
            answer_loss=plain.detach() / max(1, len(targets)),
            naming_loss=None if naming is None else naming.detach(),
        )

    def _branch_mask(self, segments: torch.Tensor) -> torch.Tensor:
        """[B, 1, T, T] from int64[B, T] segments: causal, within the prefix and the own branch.

        Padding sees itself, or its softmax would be over nothing.
        """
        implementation = self.config.text_config._attn_implementation
        if implementation not in (None, "eager", "sdpa"):
            raise ValueError(
                f"several conversations about an image share a row by a mask, which attention {implementation!r} does "
                "not take: train with sdpa, or set data.max_conversations to 1."
            )
        T = segments.shape[1]
        causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
        key, query = segments[:, None, None, :], segments[:, None, :, None]
        mask = causal & ((key == 0) | (key == query))
        if implementation == "sdpa":
            return mask
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)

    def _answer_losses(self, hidden, targets, weights) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of the tokens' losses, weighted and plain. hidden float[N, D], targets int64[N], weights float[N]."""
        head = self.lm_head
        whole = type(head) is nn.Linear and not hasattr(head.weight, "full_tensor")  # not sharded on its own
        fused = _liger_loss() if weights is None and hidden.is_cuda and whole else None
        if fused is not None:
            loss = fused(head.weight, hidden, targets)
            return loss, loss
        losses = F.cross_entropy(head(hidden).float(), targets, reduction="none")
        return (losses if weights is None else losses * weights).sum(), losses.sum()

    def _naming_loss(self, features: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of naming, by the word embeddings, what lies at each visual token. 0 where nothing is known.

        features float[tiles, L, D], what the connector gives the decoder: it then says "cat" in the words' own space
        where a cat is, and a question's "cat" finds it by likeness.
        """
        wanted = names != IGNORED
        if not wanted.any():
            return features.sum() * 0.0
        # By the module and not by its weight, which FSDP gathers for its calls alone.
        embeddings = self.get_input_embeddings()
        words = F.normalize(embeddings(torch.arange(embeddings.num_embeddings, device=names.device)).float(), dim=-1)
        logits = NAMING_SCALE * F.normalize(features[wanted].float(), dim=-1) @ words.T
        return F.cross_entropy(logits, names[wanted])


def _liger_loss():
    """Liger's fused linear cross-entropy, summed, or None where it is not installed."""
    try:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return None
    return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")
