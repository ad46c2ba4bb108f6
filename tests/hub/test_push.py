"""`argus export --push`: upload_folder with the exported folder and nothing else; what stops it is one line."""

import json

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from argus_tools.cli import main


class Hub:
    """Stands in for huggingface_hub.HfApi: keeps what it is called with; any other method is an AttributeError."""

    calls: list = []
    raises: Exception | None = None

    def upload_folder(self, **arguments):
        folder = arguments["folder_path"]
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        Hub.calls.append((arguments, files))
        if Hub.raises is not None:
            raise Hub.raises
        return huggingface_hub.CommitInfo(
            commit_url="https://huggingface.co/someone/argus/commit/0123",
            commit_message=arguments["commit_message"],
            commit_description="",
            oid="0123",
        )


@pytest.fixture
def hub(monkeypatch):
    """The hub with a token, online as far as anyone can tell."""
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_stand_in")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "raises", None)
    return Hub


def export(tiny_checkpoint, *words) -> int:
    return main(["export", "--model", str(tiny_checkpoint), *map(str, words)])


def test_push_is_upload_folder(hub, tiny_checkpoint, tmp_path, capsys):
    assert export(tiny_checkpoint, "--out", tmp_path / "out", "--push", "someone/argus") == 0
    ((arguments, files),) = hub.calls
    assert set(arguments) == {"repo_id", "folder_path", "commit_message"}
    assert arguments["repo_id"] == "someone/argus" and arguments["folder_path"] == tmp_path / "out"
    assert {"README.md", "config.json", "model.safetensors", "modeling_argus.py"} <= files
    assert (tmp_path / "out" / "config.json").is_file(), "the folder stays"
    assert "someone/argus" in capsys.readouterr().out


def test_push_alone_leaves_no_folder(hub, tiny_checkpoint, capsys):
    assert export(tiny_checkpoint, "--push", "someone/argus", "--json") == 0
    ((arguments, files),) = hub.calls
    said = json.loads(capsys.readouterr().out)
    assert said["pushed"] == "someone/argus" and said["out"] is None and set(said["files"]) == files
    assert said["commit"].startswith("https://huggingface.co/") and not arguments["folder_path"].exists()


def test_nothing_is_pushed_unless_asked(hub, tiny_checkpoint, tmp_path):
    assert export(tiny_checkpoint, "--out", tmp_path / "out") == 0
    assert hub.calls == []


@pytest.mark.parametrize(
    "name", ["argus", "someone/argus/main", "some one/argus", "someone/argus.git", "/argus", "a/--b"]
)
def test_names_that_the_hub_refuses(hub, tiny_checkpoint, tmp_path, capsys, name):
    assert export(tiny_checkpoint, "--out", tmp_path / "out", f"--push={name}") == 2
    error = capsys.readouterr().err
    assert error.startswith("argus: error: --push") and error.count("\n") == 1
    assert hub.calls == [] and not (tmp_path / "out").exists(), "told before anything is written"


def test_neither_folder_nor_repository(hub, tiny_checkpoint, capsys):
    assert export(tiny_checkpoint) == 2
    assert "--out DIR" in capsys.readouterr().err and hub.calls == []


@pytest.mark.parametrize("reason, message", [("token", "hf auth login"), ("offline", "HF_HUB_OFFLINE is set")])
def test_without_token_or_network(hub, tiny_checkpoint, tmp_path, monkeypatch, capsys, reason, message):
    if reason == "token":
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert export(tiny_checkpoint, "--out", tmp_path / "out", "--push", "someone/argus") == 2
    assert message in capsys.readouterr().err and hub.calls == [] and not (tmp_path / "out").exists()


class _Unreached(Exception):
    """An error of httpx, which is no OSError."""

    __module__ = "httpx"


def refusal(kind):
    """huggingface_hub's own error; its base takes a response, which differs between its majors."""
    error = kind.__new__(kind)
    error.args = ("403 Forbidden: you need write access",)
    return error


@pytest.mark.parametrize(
    "raised, message",
    [
        (refusal(RepositoryNotFoundError), "https://huggingface.co/new"),
        (refusal(HfHubHTTPError), "the hub refused"),
        (ConnectionError("no route to host"), "the hub was not reached: no route to host"),
        (_Unreached("name not known"), "the hub was not reached: name not known"),
    ],
    ids=["no repository", "refused", "no network", "no network with httpx"],
)
def test_a_push_that_fails_keeps_the_folder(hub, tiny_checkpoint, tmp_path, capsys, raised, message):
    hub.raises = raised
    assert export(tiny_checkpoint, "--out", tmp_path / "out", "--push", "someone/argus") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "someone/argus" in error
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_fault_of_the_program_is_no_refusal(hub, tiny_checkpoint, capsys):
    hub.raises = TypeError("unexpected keyword")
    assert export(tiny_checkpoint, "--push", "someone/argus") == 1
    assert "TypeError" in capsys.readouterr().err
