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
        num_names_in_batch=None,
        **kwargs,
    ):
        """See `Collator` for the arguments; without labels it is the model's own forward.

        num_items_in_batch, num_names_in_batch: what the sums of the two losses are divided by: the labels, or their
        weights' sum, and the named visual tokens of the whole step, over accumulated batches and processes
        (ArgusTrainer passes them); else those of this batch.

        Raises:
            ValueError: branches with an attention implementation that takes no masks of its own; DataParallel.
        """
        if getattr(self, "_is_replica", False):
            raise ValueError(
                "DataParallel splits the tiles of a batch apart from its rows: start with `accelerate launch` or "
                "torchrun, a process for each GPU, or show one GPU only (CUDA_VISIBLE_DEVICES=0)."
            )
        if labels is None:
            kwargs |= {"pixel_values": pixel_values, "position_ids": position_ids}
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        answers = plain = naming = embeddings = None
        blank = pixel_values is None
        if blank:
            # A tile that counts for nothing: all processes of a step go through all parts, in the same order.
            if self.answer_weight:
                embeddings = self.get_input_embeddings()(input_ids)
            side = self.config.vision_config.image_size
            pixel_values = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=input_ids.device)
        if blank or not self.answer_weight:
            features = self.model.get_image_features(pixel_values).pooler_output
        if self.answer_weight:
            outputs = self.model(
                **({"inputs_embeds": embeddings} if blank else {"input_ids": input_ids, "pixel_values": pixel_values}),
                attention_mask=attention_mask if segments is None else self._branch_mask(segments),
                position_ids=position_ids,
                use_cache=False,
                return_dict=True,
            )
            features = features if blank else outputs.image_hidden_states
            answers, plain, total = self._answer_losses(outputs.last_hidden_state, labels, label_weights)
            answers = answers / (total if num_items_in_batch is None else num_items_in_batch)
        loss = 0.0 * features[0, 0, 0]
        if answers is not None:
            loss = loss + self.answer_weight * answers
        if self.naming_weight:
            if blank or names is None:
                names = labels.new_full(features.shape[:2], IGNORED)
            naming, count = self._naming_loss(features, names), max(1, int((names != IGNORED).sum()))
            loss = loss + self.naming_weight * naming / (count if num_names_in_batch is None else num_names_in_batch)
            naming = naming.detach() / count
        return TrainingOutput(loss=loss, answer_loss=plain, naming_loss=naming)

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

    def _answer_losses(self, hidden_states, labels, label_weights) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(sum of the tokens' losses by weight, plain mean, sum of the weights) of float[B, T, D] and int64[B, T]."""
        targets = labels[:, 1:]
        wanted = targets != IGNORED
        hidden, targets = hidden_states[:, :-1][wanted], targets[wanted]
        head, count = self.lm_head, max(1, len(targets))
        whole = type(head) is nn.Linear and not hasattr(head.weight, "full_tensor")  # not sharded on its own
        fused = _liger_loss() if label_weights is None and hidden.is_cuda and whole else None
        if fused is not None:
            loss = fused(head.weight, hidden, targets)
            return loss, loss.detach() / count, torch.tensor(count)
        losses = F.cross_entropy(head(hidden).float(), targets, reduction="none")
        if label_weights is None:
            return losses.sum(), losses.detach().sum() / count, torch.tensor(count)
        weights = label_weights[:, 1:][wanted]
        return (losses * weights).sum(), losses.detach().sum() / count, weights.sum().clamp(min=1e-6)

    def _naming_loss(self, features: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Sum of the cross-entropies of naming, by the word embeddings, what lies at each visual token.

        features float[tiles, L, D], what the connector gives the decoder: it then says "cat" in the words' own space
        where a cat is, and a question's "cat" finds it by likeness.
        """
        wanted = names != IGNORED
        # By the module and not by its weight, which FSDP gathers for its calls alone.
        embeddings = self.get_input_embeddings()
        words = F.normalize(embeddings(torch.arange(embeddings.num_embeddings, device=names.device)).float(), dim=-1)
        logits = NAMING_SCALE * F.normalize(features[wanted].float(), dim=-1) @ words.T
        return F.cross_entropy(logits, names[wanted], reduction="sum")


def _liger_loss():
    """Liger's fused linear cross-entropy, summed, or None where it is not installed."""
    try:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return None
    return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")
