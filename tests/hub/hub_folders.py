"""Hub folders for the tests of this folder. As a script, with PYTHONPATH set: export a tiny random model to argv[1]."""

import shutil
import sys
import tempfile
from pathlib import Path

from tiny import tiny_model
from tiny_text import build_processor

from argus_tools.export import export


def save_tiny(folder: Path) -> Path:
    """A tiny random checkpoint as convert or training would leave it: model and processor saved to one folder."""
    processor = build_processor()
    tokenizer = processor.tokenizer
    model = tiny_model(
        image_token_id=tokenizer.convert_tokens_to_ids(processor.image_token),
        text_config={"vocab_size": len(tokenizer), "max_position_embeddings": 2048},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def fabricate_hub_cache(home: Path, repository: str, folder: Path) -> None:
    """What a download of `repository` would leave in HF_HOME: blobs, and a snapshot of links to them."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = home / "huggingface" / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = cache / "snapshots" / commit
    for path in (cache / "refs", cache / "blobs", snapshot):
        path.mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    for number, path in enumerate(sorted(p for p in folder.iterdir() if p.is_file())):
        blob = cache / "blobs" / f"{number:040x}"
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        export(save_tiny(Path(scratch) / "tiny"), sys.argv[1])
