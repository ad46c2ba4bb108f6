"""`argus convert`, `argus bootstrap` and `argus export`: arguments in, one folder and a summary out."""

import os
import re
import sys
import tempfile
from pathlib import Path

from . import cli_models
from .cli_support import CommandError, json_line, one_line, progress_bar, quiet_transformers

# Arguments of Python that convert's errors name, and what they are on the command line.
_OPTIONS = {"smolvlm": "--source", "size": "SIZE"}
_OPTIONS |= {
    name: "--" + name.replace("_", "-")
    for name in ("vision", "text", "num_location_bins", "pixel_unshuffle_factor", "seed", "dtype", "to")
}


class _Bar:
    """A progress bar behind convert's hook (tensors done, tensors in all, name)."""

    def __init__(self, what: str):
        self.what, self.bar = what, None

    def __call__(self, done: int, total: int, name: str) -> None:
        if self.bar is None:
            self.bar = progress_bar(total, self.what, "tensor")
        self.bar.update(done - self.bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.bar is not None:
            self.bar.close()


def run_convert(arguments) -> None:
    """`argus convert SOURCE --out DIR`."""
    from .convert import convert

    with quiet_transformers(arguments.debug), _Bar("convert") as bar:
        try:
            result = convert(arguments.source, _out(arguments), to=arguments.to, dtype=arguments.dtype, progress=bar)
        except ValueError as error:
            raise CommandError(with_options(one_line(error))) from error
    _report(result, arguments.json)


def run_bootstrap(arguments) -> None:
    """`argus bootstrap SIZE --out DIR`; "argus-2b" is "2b"."""
    from .convert import bootstrap

    with quiet_transformers(arguments.debug), _Bar("bootstrap") as bar:
        try:
            result = bootstrap(
                arguments.size.removeprefix("argus-") if arguments.size is not None else None,
                _out(arguments),
                smolvlm=arguments.smolvlm,
                vision=arguments.vision,
                text=arguments.text,
                num_location_bins=arguments.num_location_bins,
                pixel_unshuffle_factor=arguments.pixel_unshuffle_factor,
                seed=arguments.seed,
                dtype=arguments.dtype,
                progress=bar,
            )
        except ValueError as error:
            raise CommandError(with_options(one_line(error))) from error
    _report(result, arguments.json)


def run_export(arguments) -> None:
    """`argus export --out DIR`, `--push REPO` or both; needs neither torch nor transformers."""
    from .export import export
    from .push import check_push, push

    if arguments.out is None and arguments.push is None:
        raise CommandError(
            "export needs a folder to write (--out DIR), a repository to upload to (--push REPO), or both"
        )
    if arguments.push is not None:
        check_push(arguments.push)
    model = cli_models.model_folder(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        # The card of a folder without one is named after it.
        name = "argus" if arguments.push is None else arguments.push.split("/")[1]
        out = Path(scratch) / name if arguments.out is None else _out(arguments)
        path = export(model, out, force=arguments.force, progress=sys.stderr.isatty())
        files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        if arguments.out is not None and not arguments.json:
            print(f"{path}: {len(files)} files, ready for a hub repository")
        commit = push(path, arguments.push) if arguments.push is not None else None
    if arguments.json:
        fields = {"out": None if arguments.out is None else str(path), "files": files}
        print(json_line(fields | ({} if commit is None else {"pushed": arguments.push, "commit": commit})))
    elif commit is not None:
        print(f"{arguments.push}: {len(files)} files uploaded, {commit}")


def with_options(message: str) -> str:
    """An error of Python's functions in the words of the command line: "seed=5" is "--seed 5"."""
    names = "|".join(_OPTIONS)
    return re.sub(rf"(?<![\w.=])({names})=(?=(\w|')?)", lambda m: _OPTIONS[m[1]] + (" " if m[2] else ""), message)


def _out(arguments) -> str:
    """`--out`; behind a symbolic link the folder itself, which can be replaced as a whole."""
    return os.path.realpath(arguments.out) if os.path.islink(arguments.out) else arguments.out


def _report(result, as_json: bool) -> None:
    if as_json:
        fields = {
            "out": str(result.path),
            "tensors": result.num_tensors,
            "parameters": result.num_parameters,
            "dtype": result.dtype,
            "notes": result.notes,
        }
        print(json_line(fields))
        return
    millions = f"{result.num_parameters / 1e6:.1f}M parameters"
    print(f"{result.path}: {result.num_tensors} tensors, {millions}, {result.dtype}")
    for note in result.notes:
        print(f"note: {note}")
