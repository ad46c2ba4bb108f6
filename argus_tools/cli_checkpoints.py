"""`argus convert`, `argus bootstrap` and `argus export`: arguments in, one folder and a summary out."""

import json
import sys

from .cli_support import progress_bar, quiet_transformers


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
        result = convert(arguments.source, arguments.out, to=arguments.to, dtype=arguments.dtype, progress=bar)
    _report(result, arguments.json)


def run_bootstrap(arguments) -> None:
    """`argus bootstrap SIZE --out DIR`; "argus-2b" is "2b"."""
    from .convert import bootstrap

    with quiet_transformers(arguments.debug), _Bar("bootstrap") as bar:
        result = bootstrap(
            arguments.size.removeprefix("argus-") if arguments.size is not None else None,
            arguments.out,
            smolvlm=arguments.smolvlm,
            vision=arguments.vision,
            text=arguments.text,
            num_location_bins=arguments.num_location_bins,
            pixel_unshuffle_factor=arguments.pixel_unshuffle_factor,
            seed=arguments.seed,
            dtype=arguments.dtype,
            progress=bar,
        )
    _report(result, arguments.json)


def run_export(arguments) -> None:
    """`argus export --out DIR`; needs neither torch nor transformers."""
    from .export import export

    path = export(arguments.model, arguments.out, force=arguments.force, progress=sys.stderr.isatty())
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    if arguments.json:
        print(json.dumps({"out": str(path), "files": files}, ensure_ascii=False))
    else:
        print(f"{path}: {len(files)} files, ready for a hub repository")


def _report(result, as_json: bool) -> None:
    if as_json:
        fields = {
            "out": str(result.path),
            "tensors": result.num_tensors,
            "parameters": result.num_parameters,
            "dtype": result.dtype,
            "notes": result.notes,
        }
        print(json.dumps(fields, ensure_ascii=False))
        return
    millions = f"{result.num_parameters / 1e6:.1f}M parameters"
    print(f"{result.path}: {result.num_tensors} tensors, {millions}, {result.dtype}")
    for note in result.notes:
        print(f"note: {note}")
