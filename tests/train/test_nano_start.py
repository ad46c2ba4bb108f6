"""A fresh argus-nano: its location tokens start so that bins that lie near each other are alike."""

import pytest
import torch

from argus_tools.train.nano import build_nano, nano_config
from argus_tools.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def rows():
    """(location tokens' embeddings float[bins, D] in the order of the bins, all other tokens')."""
    tokenizer = train_tokenizer()
    small = {"num_hidden_layers": 1}
    embeddings = build_nano(tokenizer, nano_config(tokenizer, small, small)).get_input_embeddings().weight.detach()
    bins = sum(token.startswith("<loc_") for token in tokenizer.get_vocab())
    ids = [tokenizer.token_to_id(f"<loc_{i}>") for i in range(bins)]
    others = torch.ones(len(embeddings), dtype=torch.bool)
    others[ids] = False
    return embeddings[ids], embeddings[others]


def test_neighbouring_bins_are_more_alike_than_far_ones(rows):
    unit = torch.nn.functional.normalize(rows[0], dim=1)
    alike = unit @ unit.T
    by_distance = [alike.diagonal(d).mean().item() for d in (1, 2, 5, len(unit) // 2)]
    assert by_distance == sorted(by_distance, reverse=True)
    assert by_distance[0] > by_distance[-1] + 0.3
    far = (torch.arange(len(unit))[:, None] - torch.arange(len(unit))).abs() > len(unit) // 4
    assert alike.diagonal(1).min() > alike[far].mean() + 0.2  # each pair of neighbours, not their mean alone
    other = torch.nn.functional.normalize(rows[1], dim=1)
    assert (other[:-1] * other[1:]).sum(1).mean().abs() < 0.05  # neighbours among the words are not


def test_all_bins_differ_and_are_as_long_as_other_tokens(rows):
    locations, others = rows
    distances = torch.cdist(locations, locations) + torch.eye(len(locations)) * 1e9
    assert distances.min() > 0.5 * others.norm(dim=1).mean()
    assert 0.5 < locations.norm(dim=1).mean() / others.norm(dim=1).mean() < 2.5
    assert locations.norm(dim=1).max() < 1.5 * locations.norm(dim=1).min()  # no bin outweighs another
