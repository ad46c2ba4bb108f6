"""The project's own rules: what hub code may import, names and versions that must agree, files that README names."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from argus_tools.export import AUTO_MAP
from argus_tools.paths import HUB_PACKAGES, hub_code_files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
HUB_FILES = hub_code_files()
MODULES = {path.stem: path for path in HUB_FILES}
# Plain imports of hub code: everything else has to stand behind a guard.
ALLOWED = {"torch", "transformers", "numpy", "PIL"} | set(sys.stdlib_module_names)


def tracked_files() -> list[Path]:
    """Every file of the repository, as git knows them; in a source archive without git, all outside of caches."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0 and listing.stdout:
        return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    skipped = {".git", ".nox", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not skipped & set(p.relative_to(ROOT).parts)]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def relative_imports(path: Path) -> set[str]:
    """The siblings that a file names, wherever in it: the remote-code loader scans text, not only the top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level and node.module}


def reachable(name: str) -> set[str]:
    seen, waiting = set(), [name]
    while waiting:
        for sibling in relative_imports(MODULES[waiting.pop()]) - seen:
            seen.add(sibling)
            waiting.append(sibling)
    return seen - {name}


# --- hub code ---------------------------------------------------------------------------------------------------------


def test_hub_file_names_are_unique_and_flat():
    names = [path.name for path in HUB_FILES]
    assert len(names) == len(set(names)) > 10
    for package in HUB_PACKAGES:
        nested = [p for p in (ROOT / package).rglob("*.py") if p.parent != ROOT / package]
        assert not nested, f"hub packages have no subfolders: {nested}"


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_hub_code_imports_obey_the_rules(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    package = {p.stem for p in path.parent.glob("*.py")}

    def guarded(test: ast.expr) -> bool:
        names = [getattr(node.func, "id", "") for node in ast.walk(test) if isinstance(node, ast.Call)]
        return any(re.fullmatch(r"is_\w+_available", name) for name in names)

    def visit(node: ast.AST, optional: bool, in_function: bool) -> None:
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, (
                f"line {node.lineno}: only `from .name import x`"
            )
            assert node.module in package, f"line {node.lineno}: .{node.module} is not in {path.parent.name}"
            assert not optional, f"line {node.lineno}: the loader copies a relative import whether it is guarded or not"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in (name.split(".")[0] for name in names):
                assert name not in {*HUB_PACKAGES, "argus_tools"}, (
                    f"line {node.lineno}: {name} is not there in a hub folder"
                )
                if name not in ALLOWED:
                    assert optional and not in_function, (
                        f"line {node.lineno}: {name} needs `try:` or `if is_..._available():` at module level"
                    )
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    shielded = (isinstance(node, ast.Try) and field == "body") or (
                        isinstance(node, ast.If) and field == "body" and guarded(node.test)
                    )
                    function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                    visit(child, optional or shielded, in_function or function)

    visit(tree, False, False)
    # The loader's regular expression also takes such a line in a docstring for an import.
    code_lines = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    text_lines = {n for n, line in enumerate(source.splitlines(), 1) if re.match(r"\s*(from\s+\.|import\s+\.)", line)}
    assert text_lines <= code_lines, f"lines {sorted(text_lines - code_lines)} read like relative imports to the loader"


@pytest.mark.parametrize("entry", sorted({target.split(".")[0] for target in AUTO_MAP.values()}))
def test_entry_files_name_every_sibling_that_they_reach(entry):
    # 4.57 copies from a local folder only what the entry file itself names.
    missing = reachable(entry) - relative_imports(MODULES[entry])
    assert not missing, f"{entry}.py reaches {sorted(missing)} without naming them"


def test_auto_map_targets_exist():
    for auto_class, target in AUTO_MAP.items():
        module, name = target.split(".")
        classes = [
            n.name for n in ast.parse(MODULES[module].read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)
        ]
        assert name in classes, f"{auto_class} points to {target}, which is not defined there"


def test_auto_map_is_complete():
    expected = "AutoConfig AutoModel AutoModelForImageTextToText AutoModelForVision2Seq AutoModelForMultimodalLM"
    assert set(AUTO_MAP) == {*expected.split(), "AutoProcessor", "AutoImageProcessor"}


@pytest.mark.parametrize("card", sorted(ROOT.glob("hub_cards/argus-*")), ids=lambda path: path.name)
def test_cards_hold_data_and_no_code(card):
    assert (card / "README.md").is_file() and (card / "config.json").is_file()
    assert not list(card.rglob("*.py")), "export adds the code"
    assert json.loads((card / "config.json").read_text(encoding="utf-8"))["model_type"] == "argus"


# --- the repository ---------------------------------------------------------------------------------------------------


def test_no_pickles_and_no_eval():
    """Pickles and the builtins eval and exec run what a file says; nothing here may."""
    for path in tracked_files():
        if path.suffix != ".py" or "tests" in path.relative_to(ROOT).parts[:1]:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None)]
                assert not {"pickle", "cPickle", "dill", "joblib"} & set(names), where
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"eval", "exec", "torch.load", "torch.save"}, where
                allowed = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
                assert not allowed, where


def test_no_file_over_20_mb():
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked_files() if p.stat().st_size > 20_000_000}
    assert not large


def test_one_version():
    version = project()["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    import argus_tools

    assert argus_tools.__version__ == version


def test_one_version_of_ruff():
    """Where a contributor's hook and CI format differently, every other commit undoes the one before it."""
    versions = [
        re.findall(r"rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")),
        re.findall(r"ruff==([\d.]+)", (ROOT / "noxfile.py").read_text(encoding="utf-8")),
    ]
    assert versions[0] == versions[1] and len(versions[0]) == 1


# --- README -----------------------------------------------------------------------------------------------------------


def documents() -> list[Path]:
    return [path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_paths_that_documents_name_exist(document):
    """Links, and whatever stands in backticks or in the annotated tree and looks like a path of this repository."""
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if not re.match(r"https?:|mailto:", link)]
    top = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    quoted = [q for q in re.findall(r"`([\w./-]+)`", text) if "/" in q and q.split("/")[0] in top]
    tree = [
        line.split()[0]
        for line in text.splitlines()
        if re.match(r"[\w.-]+(/[\w.-]*)*/?\s{2,}\S", line) and "/" in line.split()[0]
    ]
    missing = [name for name in [*links, *quoted, *tree] if not (ROOT / name).exists()]
    assert not missing, f"{document.name} names {missing}"


def test_ci_runs_the_readme_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ".venv/bin/nox" in readme and ".venv/bin/nox" in ci
    assert "pip install" in readme


def test_readme_names_every_subcommand():
    from argus_tools.cli import build_parser

    actions = [
        action for action in build_parser()._actions if hasattr(action, "choices") and isinstance(action.choices, dict)
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for action in actions for name in action.choices if f"argus {name}" not in readme]
    assert actions and not missing, f"README.md does not show: {missing}"


def test_wheel_holds_the_packages_and_the_cards(tmp_path):
    build = pytest.importorskip("hatchling.build")
    script = (
        f"import os; os.chdir({str(ROOT)!r}); from hatchling import build; print(build.build_wheel({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    import zipfile

    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    assert build and {f"{p.parent.name}/{p.name}" for p in HUB_FILES} <= names
    cards = {str(p.relative_to(ROOT)) for p in tracked_files() if p.is_relative_to(ROOT / "hub_cards" / "argus-nano")}
    assert cards and {f"argus_tools/{name}" for name in cards} <= names
