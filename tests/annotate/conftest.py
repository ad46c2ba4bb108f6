"""A tiny model's folder, pictures, and runs of `argus annotate` in this process, for the tests of annotating."""

import json

import pytest
from PIL import Image
from tiny import tiny_model
from tiny_text import build_processor

from argus_tools.cli import main


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A model and its processor, saved."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    processor = build_processor("native")
    tokenizer = processor.tokenizer
    model = tiny_model(
        image_token_id=processor.image_token_id,
        text_config={"vocab_size": len(tokenizer)},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder "pictures" in the current one with 7 images of several sizes; one of them is damaged."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, size in enumerate([(64, 40), (30, 90), (32, 32), (100, 64), (64, 64), (96, 32)]):
        place = folder / "deep" if number % 2 else folder
        Image.new("RGB", size, (40 * number, 99, 200 - 30 * number)).save(place / f"{number}.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "notes.txt").write_text("not a list of images")
    return folder


@pytest.fixture
def annotate(tiny_folder, capsys):
    """Runs the command on the tiny model; gives its exit status, its JSON or its error line."""

    def run(*words, status=0, model=True):
        argv = ["annotate", *map(str, words), "--json", *(["--model", tiny_folder] if model else [])]
        argv += ["--workers", "2", "--max-new-tokens", "4", "--device", "cpu"]
        assert main(argv) == status, capsys.readouterr().err
        captured = capsys.readouterr()
        return json.loads(captured.out) if status == 0 else captured.err.splitlines()[-1]

    return run


@pytest.fixture
def rows_in():
    """All rows in an output folder's finished files, by id; no id may be there twice."""
    from argus_tools.annotate.shards import part_files, rows_of

    def read(folder):
        rows = [row for path in part_files(folder) for row in rows_of(path)]
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: row for row in rows}

    return read
