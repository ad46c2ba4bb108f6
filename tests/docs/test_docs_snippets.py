"""What docs/ shows is run on argus-nano: Python as it stands, cheap command lines too; the others are parsed."""

import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
from markdown_pages import DOCS, ROOT, argus_commands, blocks, page_name, shell_lines, tables
from PIL import Image

sys.path.insert(0, str(ROOT / "tests" / "hub"))

from isolation import run_isolated

from argus_tools.cli import build_parser, main
from argus_tools.export import export
from argus_tools.paths import default_model_path

# Pages for those who have a hub folder alone, and pages for those who have the project installed.
FOR_STRANGERS = ("tasks.md", "speed.md")
WITH_PROJECT = ("annotate.md", "converting.md", "finetuning.md", "upgrading.md")
CHEAP = ("caption", "ask", "detect", "dense-caption", "export")
NANO = (None, "argus-nano", "argus-nano-hub")


@pytest.fixture(scope="module")
def nano_hub(tmp_path_factory):
    return export(default_model_path(), tmp_path_factory.mktemp("hub") / "argus-nano-hub")


def furnish(work, nano_hub) -> None:
    """The folder that the pages speak of."""
    work.mkdir(exist_ok=True)
    shutil.copytree(nano_hub, work / "argus-nano-hub")
    shutil.copytree(ROOT / "examples", work / "examples")
    with Image.open(ROOT / "examples" / "scene.png") as scene:
        for name in ("photo.jpg", "a.jpg", "b.jpg"):
            scene.convert("RGB").save(work / name)


def own_argus(folder):
    """A folder with the command `argus` of this checkout and this interpreter."""
    folder.mkdir()
    command = folder / "argus"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m argus_tools.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return folder


def script_of(names, path) -> str:
    """One script that runs each page's blocks in a namespace of their own, under the page's name in tracebacks."""
    pages = {name: "\n".join(blocks(ROOT / "docs" / name, "python")) for name in names}
    assert all(pages.values())
    path.write_text(
        f"pages = {pages!r}\nfor name, text in pages.items():\n"
        "    exec(compile(text, name, 'exec'), {'__name__': '__main__'})\n",
        encoding="utf-8",
    )
    return str(path)


def test_every_page_with_python_is_run():
    assert {page.name for page in DOCS if blocks(page, "python")} == {*FOR_STRANGERS, *WITH_PROJECT}


def test_snippets_run_without_the_project(nano_hub, tmp_path):
    furnish(tmp_path / "elsewhere", nano_hub)
    run_isolated(script_of(FOR_STRANGERS, tmp_path / "snippets.py"), home=tmp_path, timeout=900)


@pytest.mark.slow
def test_snippets_run_with_the_project(nano_hub, tmp_path):
    for library in ("peft", "trl", "datasets"):
        pytest.importorskip(library, reason="the extra `train` is not installed")
    furnish(tmp_path / "work", nano_hub)
    caches = {"HF_HOME": str(tmp_path / "huggingface"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = os.pathsep.join([str(own_argus(tmp_path / "bin")), environment["PATH"]])
    done = subprocess.run(
        [sys.executable, script_of(WITH_PROJECT, tmp_path / "snippets.py")],
        env=environment,
        cwd=tmp_path / "work",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", DOCS, ids=page_name)
def test_command_lines_are_understood(page):
    """Those of `argus`, those of a launcher that ends in it, and those of the example."""
    for arguments in argus_commands(page):
        build_parser().parse_args(arguments)
    for words in shell_lines(page):
        if "argus_tools.cli" in words:
            build_parser().parse_args(words[words.index("argus_tools.cli") + 1 :])
        if words[0] == "python" and words[1].endswith(".py"):
            runpy.run_path(str(ROOT / words[1]), run_name="read")["parse_arguments"](words[2:])
        for word in words:
            if word.startswith(("argus_tools/", "examples/")):
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", [page for page in DOCS if argus_commands(page)], ids=page_name)
def test_cheap_command_lines_run(page, nano_hub, tmp_path, monkeypatch, capsys):
    furnish(tmp_path / "work", nano_hub)
    monkeypatch.chdir(tmp_path / "work")
    if ["export", "--out", "argus-nano-hub"] in argus_commands(page):
        shutil.rmtree("argus-nano-hub")
    for arguments in argus_commands(page):
        cheap = arguments[0] in CHEAP and "--push" not in arguments
        if cheap and build_parser().parse_args(arguments).model in NANO:
            assert main([*arguments, "--debug"]) == 0, f"argus {arguments}: {capsys.readouterr().err}"
            assert capsys.readouterr().out.strip()


def test_the_configuration_and_its_data_are_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="readers keep their records in Arrow files of `datasets`")
    from argus_tools.train.config import load_config
    from argus_tools.train.readers import open_reader

    (shown,) = blocks(ROOT / "docs" / "finetuning.md", "yaml")
    (tmp_path / "mine.yaml").write_text(shown, encoding="utf-8")
    config = load_config(tmp_path / "mine.yaml")
    assert [stage.name for stage in config.stages] == ["connector", "all"]

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (lines,) = blocks(ROOT / "docs" / "finetuning.md", "json")
    (tmp_path / "data.jsonl").write_text(lines, encoding="utf-8")
    Image.new("RGB", (320, 240)).save(tmp_path / "shelf.jpg")
    assert len(open_reader("chat", path=tmp_path / "data.jsonl", images=tmp_path)) == len(lines.splitlines()) == 3


def test_the_keys_of_the_configuration_exist():
    from argus_tools.train.config import DataConfig, TrainConfig

    known = {each.name for each in fields(TrainConfig)} | {f"data.{each.name}" for each in fields(DataConfig)}
    (table,) = [table for table in tables(ROOT / "docs" / "finetuning.md") if table.header[0] == "key"]
    assert {name.strip(" `") for row in table.rows for name in row[0].split(",")} <= known
