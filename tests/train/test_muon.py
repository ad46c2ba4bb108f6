"""The optimizer MuonAdamW: against torch's own Muon, and as the Trainer saves, resumes and refuses it."""

import copy

import pytest
import torch

from argus_tools.train.muon import MuonAdamW, orthogonalised
from argus_tools.train.trainer import matrices_of_layers

SHAPES = [(24, 24), (24, 24), (40, 24), (24, 40)]


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in SHAPES]


def set_gradients(matrices, step):
    generator = torch.Generator().manual_seed(100 + step)
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=generator)


def muon(matrices, vectors=()):
    groups = [{"params": list(matrices), "muon": True}, {"params": list(vectors)}]
    return MuonAdamW([group for group in groups if group["params"]], lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 48)])
def test_directions_are_orthogonal_and_keep_the_singular_vectors(shape):
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    directions = orthogonalised(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    between = left.mT @ directions @ right.mT
    values = between.diagonal(dim1=-2, dim2=-1)
    assert 0.3 < values.min() and values.max() < 1.3
    assert (between - torch.diag_embed(values)).abs().max() < 1e-3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has its own Muon from 2.9 on")
def test_steps_are_those_of_torch_up_to_its_bf16(monkeypatch):
    ours, theirs = parameters(), parameters()
    own = muon(ours)
    reference = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(3):
        before = [matrix.detach().clone() for matrix in ours]
        set_gradients(ours, step), set_gradients(theirs, step)
        own.step(), reference.step()
        for mine, other, old in zip(ours, theirs, before):
            moved = (mine - old).norm()
            assert moved > 0
            assert (mine - other).norm() < 0.03 * moved * (step + 1)


def test_other_groups_are_stepped_by_adamw_and_gradients_stay():
    matrices, vector, alone = parameters(), torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    optimizer = muon(matrices, [vector])
    reference = torch.optim.AdamW([alone], lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(3):
        set_gradients(matrices, step)
        vector.grad, alone.grad = torch.arange(5.0) + step, torch.arange(5.0) + step
        optimizer.step(), reference.step()
    assert torch.equal(vector, alone) and not torch.equal(vector, torch.ones(5))
    assert all(matrix.grad is not None for matrix in matrices)


def test_a_state_that_is_saved_gives_the_same_next_step():
    went_on, resumed = parameters(), parameters()
    first = muon(went_on)
    set_gradients(went_on, 0)
    first.step()
    second = muon(resumed)
    with torch.no_grad():
        for mine, other in zip(resumed, went_on):
            mine.copy_(other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, matrices in ((first, went_on), (second, resumed)):
        set_gradients(matrices, 1)
        optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(resumed, went_on))


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"Muon steps matrices, got a parameter of shape \(3,\)"):
        muon([torch.nn.Parameter(torch.ones(3))])


def test_sharded_matrices_are_refused():
    model = torch.nn.Linear(2, 2)
    model.weight.full_tensor = None  # as FSDP's have
    model.get_output_embeddings = lambda: torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        matrices_of_layers(model)
