"""The mixture: shares, fresh orders, purity; what is chosen of a sample, and in which order; paper.yaml's sources."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from argus_tools.train.augment import Augmentation
from argus_tools.train.mixture import BLOCK, ORDERS, Mixture, RegionOptions, permuted
from argus_tools.train.samples import Region, Sample, Turn

CONFIGS = Path(__file__).resolve().parents[2] / "argus_tools" / "train" / "configs"


class Numbers:
    """A reader whose samples say which they are."""

    def __init__(self, name: str, size: int, may_flip: bool = False):
        self.name, self.size, self.may_flip = name, size, may_flip

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        regions = tuple(Region((x, 40 - 3 * x, x + 1 + x % 3, 50), f"thing {x}") for x in range(6))
        turns = [(Turn("Where?", regions),), (Turn("Which?", str(index)),), (Turn("Who?", self.name),)]
        return Sample((np.zeros((64, 64, 3), np.uint8),), tuple(turns), regions, f"{self.name} {index}")


def drawn(mixture: Mixture) -> list[tuple[int, int]]:
    return [mixture.locate(i) for i in range(len(mixture))]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.integers(0, 2**40), st.integers(0, 5), st.integers(0, 10**9))
def test_the_order_is_a_permutation(size, seed, source, turn):
    places = [permuted(place, size, (seed, source, turn)) for place in range(size)]
    assert sorted(places) == list(range(size))


def test_orders_differ_and_are_mixed():
    n = 5000
    one, other = ([permuted(i, n, (1, 0, turn)) for i in range(n)] for turn in (0, 1))
    assert sum(a == b for a, b in zip(one, other)) < 20  # of a random permutation one place in n stays
    # Neighbours end far from each other, as with any shuffle: n / 3 apart on average.
    assert np.abs(np.diff(one)).mean() == pytest.approx(n / 3, rel=0.05)
    assert abs(np.corrcoef(one, np.arange(n))[0, 1]) < 0.05


def test_each_source_has_its_share_and_is_gone_through_before_it_is_repeated():
    mixture = Mixture([Numbers("a", 7), Numbers("b", 1000), Numbers("c", 90)], [1, 100, 0.3], 40 * BLOCK, seed=3)
    counts = Counter(source for source, _ in drawn(mixture))
    for source, weight in enumerate([1, 100, 0.3]):
        assert counts[source] == pytest.approx(len(mixture) * weight / 101.3, abs=40)  # less than one a block
    for source, size in enumerate([7, 1000, 90]):
        items = [item for s, item in drawn(mixture) if s == source]
        for start in range(0, len(items), size):
            turn = items[start : start + size]
            assert len(set(turn)) == len(turn)
    items = [item for s, item in drawn(mixture) if s == 0]
    assert len({tuple(items[start : start + 7]) for start in range(0, len(items) - 6, 7)}) > 5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.integers(0, 2**32), st.integers(1, 1500))
def test_any_weights_draw_every_item_of_a_turn(weights, seed, length):
    """What is counted for the blocks is what is drawn in them: no item twice before its source is through."""
    mixture = Mixture([Numbers(str(i), 97) for i in range(len(weights))], weights, length, seed)
    for source in range(len(weights)):
        items = [item for s, item in drawn(mixture) if s == source]
        for start in range(0, len(items), 97):
            turn = items[start : start + 97]
            assert len(set(turn)) == len(turn)


def test_another_item_of_the_same_source_stands_in():
    mixture = Mixture([Numbers("a", 100), Numbers("b", 30)], [1, 1], 200, seed=3)
    first, second = ([mixture.locate(i, tried) for i in range(200)] for tried in (1, 2))
    assert [source for source, _ in first] == [source for source, _ in second] == [s for s, _ in drawn(mixture)]
    for others in (first, second):
        same = sum(one == other for one, other in zip(others, drawn(mixture)))
        assert same < 20  # by chance: one in a hundred, one in thirty
        assert len(set(others)) > 60
    assert str(mixture.sample(7, *mixture.locate(7))) == str(mixture[7])


def test_samples_depend_on_seed_and_number_alone():
    readers = [Numbers("a", 50, may_flip=True), Numbers("b", 30)]
    options = RegionOptions("random", 3, 2)
    augmentation = Augmentation(flip=0.5, scale=(0.5, 1.0), colour=0.3)
    mixture = Mixture(readers, [2, 1], 600, 5, options, augmentation)
    longer = Mixture(readers, [2, 1], 10_000, 5, options, augmentation)
    forwards = [str(mixture[i]) for i in range(0, 600, 37)]
    assert forwards == [str(longer[i]) for i in reversed(range(0, 600, 37))][::-1]
    other = Mixture(readers, [2, 1], 600, 6, options, augmentation)
    assert drawn(mixture) == drawn(longer)[:600] != drawn(other)


def test_every_number_of_workers_gives_the_same_samples():
    mixture = Mixture(
        [Numbers("a", 5), Numbers("b", 9)], [1, 1], 24, 1, RegionOptions("random", 3), Augmentation(colour=1)
    )
    alone, helped = (
        [str(sample) for batch in DataLoader(mixture, batch_size=5, num_workers=n, collate_fn=list) for sample in batch]
        for n in (0, 2)
    )
    assert len(alone) == 24 and alone == helped


def test_a_hundred_million_samples_are_no_list():
    mixture = Mixture([Numbers("a", 25_000_000), Numbers("b", 3)], [5, 1], 100_000_000)
    source, item = mixture.locate(99_999_999)
    assert 0 <= item < len(mixture.readers[source])
    with pytest.raises(IndexError, match="of a mixture of 100000000"):
        mixture.locate(100_000_000)


@pytest.mark.parametrize("order", ORDERS)
def test_region_orders(order):
    sample = Numbers("a", 1)[0]
    rng = np.random.default_rng(4)
    answer = RegionOptions(order).order(sample, rng).conversations[0][0].answer
    boxes = [region.box for region in answer]
    assert sorted(boxes) == sorted(region.box for region in sample.objects)
    if order == "reading":
        assert boxes == sorted(boxes, key=lambda box: (box[1], box[0]))
    elif order == "area":
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
        assert areas == sorted(areas, reverse=True)
    else:
        assert (boxes == [region.box for region in sample.objects]) == (order == "source")


def test_no_more_regions_and_conversations_than_allowed():
    sample, seen = Numbers("a", 1)[0], set()
    for seed in range(40):
        chosen = RegionOptions(max_regions=2, max_conversations=2).choose(sample, np.random.default_rng(seed))
        assert len(chosen.conversations) == 2 and chosen.objects == sample.objects
        places = [[c[0].prompt for c in sample.conversations].index(turns[0].prompt) for turns in chosen.conversations]
        assert places == sorted(places)
        if places[0] == 0:
            answer = chosen.conversations[0][0].answer
            assert len(answer) == 2 and answer[0].box[0] < answer[1].box[0]
            seen.add(tuple(region.caption for region in answer))
    assert len(seen) > 5
    assert RegionOptions().choose(sample, np.random.default_rng(0)) is not None
    assert RegionOptions(max_regions=6, max_conversations=3).choose(sample, np.random.default_rng(0)) == sample


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": [1]}, "needs readers and a weight for each, got 2"),
        ({"weights": [1, 0]}, "weights must be above 0"),
        ({"weights": [1, float("nan")]}, "weights must be above 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"length": 0}, "seed must be at least 0, length and group 1: got 0, 0 and 1"),
        ({"readers": [Numbers("a", 3), Numbers("b", 0)]}, "reader 1 of the mixture is empty"),
    ],
)
def test_mixtures_that_cannot_be(changes, message):
    arguments = {"readers": [Numbers("a", 3), Numbers("b", 2)], "weights": [1, 1], "length": 4, **changes}
    with pytest.raises(ValueError, match=message):
        Mixture(**arguments)


def test_region_options_that_do_not_fit():
    with pytest.raises(ValueError, match="region_order is 'left'; it can be reading, random, area, source"):
        RegionOptions("left")
    with pytest.raises(ValueError, match="max_regions must be a positive integer"):
        RegionOptions(max_regions=0)


# --- paper.yaml -------------------------------------------------------------------------------------------------------


def paper():
    from argus_tools.train.config import load_config

    return load_config(CONFIGS / "paper.yaml")


def test_paper_mixture_is_section_5s():
    """Captions: ShareGPT4V 1.2M, COCO 591K; instruction 3.55M of five sources; boxes of three."""
    config = paper()
    sources = {source.name: source for source in config.data.sources}
    assert [sources[name].stated for name in ("sharegpt4v-captions", "coco-captions")] == [1_200_000, 591_000]
    instruction = [s for s in config.data.sources if s.name.startswith("instruct-")]
    assert {s.reader for s in instruction} == {"sharegpt4v", "wit", "vision_flan", "scienceqa", "mgm_instruct"}
    assert sum(s.weight for s in instruction) == pytest.approx(3_550_000)
    boxes = [s for s in config.data.sources if s.name.startswith("boxes-")]
    assert {s.reader for s in boxes} == {"objects365", "coco_instances", "visual_genome"}
    assert len(config.data.sources) == 2 + len(instruction) + len(boxes)
    for name in ("sharegpt4v-captions", "coco-captions"):
        assert sources[name].weight == sources[name].stated  # one unit: samples


def test_paper_mixture_opens_on_the_fixtures(tmp_path):
    """Every reader that paper.yaml names, with its options, on fixtures laid out as its comments say."""
    pytest.importorskip("datasets", reason="readers keep their records in Arrow files of `datasets`")
    from argus_tools.train.readers import open_reader

    config, fixtures, root = paper(), Path(__file__).parent / "fixtures", tmp_path / "data"
    root.mkdir()
    for folder in {Path(s.options["path"]).parts[0] for s in config.data.sources}:
        (root / folder).symlink_to(fixtures / folder)
    readers = [
        open_reader(s.reader, root=root, **{**s.options, "cache_dir": tmp_path / "arrow"}) for s in config.data.sources
    ]
    options = RegionOptions(config.data.region_order, config.data.max_regions, config.data.max_conversations)
    weights = [source.weight for source in config.data.sources]
    mixture = Mixture(readers, weights, 250, 0, options, Augmentation.parse(config.data.augmentation))
    seen = Counter()
    for i in range(len(mixture)):
        sample, source = mixture[i], mixture.locate(i)[0]
        seen[config.data.sources[source].name] += 1
        assert sample.conversations and len(sample.conversations) <= (config.data.max_conversations or 99)
    assert set(seen) >= {source.name for source in config.data.sources if source.weight > 100_000}


def test_paper_yaml_trains_on_the_fixtures(tiny_nano, tmp_path, monkeypatch):
    """Both of its stages, a step each, from the fixtures to a checkpoint."""
    datasets = pytest.importorskip("datasets", reason="readers keep their records in Arrow files of `datasets`")
    from argus_tools.train.config import load_config
    from argus_tools.train.run import run_config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    changes = {
        "model": str(tiny_nano),
        "output_dir": str(tmp_path / "run"),
        "data.root": str(Path(__file__).parent / "fixtures"),
        "bf16": False,
        "loader_processes": 0,
        "tensorboard": False,
    }
    for stage in range(2):
        sizes = {"steps": 1, "batch_size": 8, "accumulation": 2, "warmup": 0}
        changes |= {f"stages.{stage}.{name}": value for name, value in sizes.items()}
    folder = run_config(load_config(CONFIGS / "paper.yaml", changes))
    assert (folder / "config.json").is_file() and list(folder.glob("*.safetensors"))


def test_groups_are_of_one_source_and_lose_nothing():
    readers = [Numbers("a", 50), Numbers("b", 30)]
    mixture = Mixture(readers, [3, 1], 400, seed=5, group=8)
    places = [mixture.locate(i) for i in range(400)]
    sources = [source for source, _ in places]
    assert all(len(set(sources[i : i + 8])) == 1 for i in range(0, 400, 8)) and set(sources) == {0, 1}
    for source, size in ((0, 50), (1, 30)):  # every item once in each turn
        items = [item for where, item in places if where == source]
        assert len(items) > size and sorted(items[:size]) == list(range(size))
    assert places == [Mixture(readers, [3, 1], 400, seed=5, group=8).locate(i) for i in range(400)]
    with pytest.raises(ValueError, match="length and group 1: got 0, 400 and 0"):
        Mixture(readers, [3, 1], 400, group=0)
