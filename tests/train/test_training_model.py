"""The losses: Equation 1 as the model itself has it, whatever the rows are packed like; naming; fused on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import square_sample

from argus_tools.train.collate import IGNORED, Collator
from argus_tools.train.samples import Sample, Turn
from argus_tools.train.training_model import NAMING_SCALE
from modeling_argus import ArgusForConditionalGeneration


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_branch_is_worth_the_same_alone(training_model, processor, attention):
    """fp32: the loss of packed rows is that of every conversation as a prompt of its own, and so are the gradients."""
    training_model.set_attn_implementation(attention)
    samples = [square_sample(i) for i in range(3)]
    results = []
    for branches in (True, False):
        batch = Collator(processor, branches=branches)(samples)
        training_model.zero_grad()
        output = training_model(**batch)
        output.loss.backward()
        results.append((output.loss.item(), [p.grad.clone() for p in training_model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for packed, alone in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-6)


def test_it_is_the_models_own_loss(training_model, tiny_nano, processor):
    batch = Collator(processor, branches=False)([square_sample(i) for i in range(2)])
    plain = ArgusForConditionalGeneration.from_pretrained(tiny_nano, dtype=torch.float32)
    assert training_model(**batch).loss.item() == pytest.approx(plain(**batch).loss.item(), rel=1e-6)
    assert training_model(**batch, num_items_in_batch=7).loss.item() == pytest.approx(
        plain(**batch, num_items_in_batch=7).loss.item(), rel=1e-6
    )
    assert training_model(**batch).answer_loss == training_model(**batch).loss


def test_answers_count_by_their_weights(training_model, processor):
    batch = Collator(processor, answer_weighting="root", branches=False)([square_sample(i) for i in range(2)])
    logits = (
        super(type(training_model), training_model)
        .forward(**{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")})
        .logits[:, :-1]
    )
    labels, weights = batch["labels"][:, 1:], batch["label_weights"][:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
    expected = (losses * weights.flatten()).sum() / weights.sum()
    assert training_model(**batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_visual_tokens_learn_names_in_the_words_space(training_model, processor):
    batch = Collator(processor, naming=True)([square_sample(i) for i in range(4)])
    training_model.naming_weight = 0.5
    output = training_model(**batch)
    assert output.loss.item() == pytest.approx(output.answer_loss.item() + 0.5 * output.naming_loss.item(), rel=1e-5)
    features = training_model.get_image_features(batch["pixel_values"]).pooler_output.flatten(0, 1)
    words = training_model.get_input_embeddings().weight
    cosines = F.cosine_similarity(features[:, None], words[None], dim=-1)
    expected = F.cross_entropy(NAMING_SCALE * cosines, batch["names"].flatten())
    assert output.naming_loss.item() == pytest.approx(expected.item(), rel=1e-4)

    training_model.answer_weight = 0.0  # naming alone leaves the decoder out, and is the same number
    alone = training_model(**batch)
    assert alone.loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-4)
    alone.loss.backward()
    learnt = {name for name, p in training_model.named_parameters() if p.grad is not None}
    assert any("vision_model" in name for name in learnt) and not any("text_model.layers" in name for name in learnt)


def test_losses_fall(training_model, processor):
    torch.manual_seed(0)
    batch = Collator(processor)([square_sample(i) for i in range(4)])
    optimizer = torch.optim.AdamW(training_model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = training_model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_gradient_checkpointing_changes_nothing(training_model, processor):
    batch = Collator(processor)([square_sample(0)])
    results = []
    for on in (False, True):
        if on:
            training_model.gradient_checkpointing_enable({"use_reentrant": False})
        training_model.zero_grad()
        training_model(**batch).loss.backward()
        results.append([p.grad.clone() for p in training_model.parameters()])
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_branches_need_masks(training_model, processor, monkeypatch):
    batch = Collator(processor)([square_sample(0)])
    monkeypatch.setattr(training_model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"set data\.max_conversations to 1"):
        training_model(**batch)


def test_without_labels_it_is_the_model(training_model, tiny_nano, processor):
    batch = Collator(processor, branches=False)([square_sample(0)])
    del batch["labels"]
    plain = ArgusForConditionalGeneration.from_pretrained(tiny_nano, dtype=torch.float32)
    assert torch.equal(training_model.eval()(**batch).logits, plain(**batch).logits)


def test_a_batch_of_text_alone_goes_through_every_part(training_model, processor):
    """Or DDP and FSDP would wait for the gradients of parts that one process has not touched."""
    batch = Collator(processor)([Sample((), ((Turn("Hello?", "Yes."),),))])
    output = training_model(**batch)
    output.loss.backward()
    assert output.loss == output.answer_loss
    for name, parameter in training_model.named_parameters():
        assert parameter.grad is not None, name
        assert "vision" not in name or not parameter.grad.any()
    for name, parameter in training_model.named_parameters():
        parameter.requires_grad_(".connector." in name)
    training_model(**batch).loss.backward()  # nothing to learn from, and no error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Liger's fused loss needs a CUDA device")
def test_ligers_fused_loss_is_the_loss(training_model, processor):
    pytest.importorskip("liger_kernel")
    batch = {k: v.cuda() for k, v in Collator(processor)([square_sample(i) for i in range(4)]).items()}
    model = training_model.cuda()
    fused = model(**batch)
    fused.loss.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    batch["label_weights"] = (batch["labels"] != IGNORED).float()  # weights of one take the plain way
    plain = model(**batch)
    plain.loss.backward()
    torch.testing.assert_close(fused.loss, plain.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, model.lm_head.weight.grad, rtol=1e-3, atol=1e-5)
