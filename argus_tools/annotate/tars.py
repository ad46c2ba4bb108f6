"""WebDataset tars: images with the key of their sample and the JSON and text beside them.

Of an uncompressed tar only headers are read here; whoever decodes an image opens the tar at its place. A compressed one
has no places: it is read through once for the list and once more for the images.
"""

import json
import tarfile
from collections.abc import Iterator

from ..cli_support import one_line
from .items import MAX_IMAGE_BYTES, Item, as_json, has_image_suffix, looks_like_image, too_large

SIDECARS = ("json", "txt", "cls", "caption")
MAX_SIDECAR_BYTES = 1 << 20  # what is larger is no caption


def tar_items(path: str, name: str) -> Iterator[Item]:
    """The images of a tar in its order; an item of kind "error" where it cannot be read any further."""
    sample, key, count = [], None, 0
    seen: dict[str, int] = {}
    try:
        tar, packed = _open(path)
        with tar:
            for number, member in enumerate(_members(tar)):
                if not member.isfile() or _is_hidden(member.name):
                    continue
                if _key(member.name) != key:
                    yield from _sample_items(path, name, key, sample, packed, seen)
                    sample, key = [], _key(member.name)
                sample.append((number, member, _content(tar, member, packed)))
                count += 1
            if not packed:
                _check_end(tar)
        yield from _sample_items(path, name, key, sample, packed, seen)
    except Exception as error:  # tarfile's, zlib's, bz2's and lzma's errors are many kinds
        if sample:
            yield from _sample_items(path, name, key, sample, packed, seen)
        reason = f"the tar cannot be read behind its first {count} files: {one_line(error)}"
        yield Item(_unique(f"{name}/#damaged", seen), name, "error", path, error=reason)


def packed_images(path: str, numbers: set[int]) -> Iterator[tuple[int, bytes | None, str | None]]:
    """(number, bytes, None) of these members of a compressed tar, in its order, or (number, None, what is wrong)."""
    left = set(numbers)
    with tarfile.open(path, "r|*") as tar:
        for number, member in enumerate(_members(tar)):
            if number not in left:
                continue
            if member.size > MAX_IMAGE_BYTES:  # however small it is when compressed
                yield number, None, too_large(member.size)
            else:
                yield number, tar.extractfile(member).read(), None
            left.discard(number)
            if not left:
                return


def as_metadata(parts: list[tuple[str, bytes]]) -> str | None:
    """JSON of {suffix: content}: what is JSON as it is, all else as text; None of nothing."""
    values = {}
    for suffix, content in parts:
        text = content.decode("utf-8", "replace")
        try:
            value = json.loads(text) if suffix == "json" else text
            as_json({suffix: value})
        except (ValueError, RecursionError):
            value = text
        values[suffix] = value
    return as_json(values) if values else None


def _open(path: str) -> tuple[tarfile.TarFile, bool]:
    try:
        return tarfile.open(path, "r:"), False
    except tarfile.ReadError:
        return tarfile.open(path, "r:*"), True


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # tarfile keeps all of them, which are millions
        yield member


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError where the tar, read to its last member, does not end there: tarfile takes any header that it
    cannot read for the end."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")


def _is_hidden(name: str) -> bool:
    """As in folders; a Mac's tars have a hidden file beside each."""
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _suffix(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def _content(tar, member, packed: bool) -> bytes | None:
    """What has to be read now: the beginning of a file without a telling name, and sidecars of a compressed tar."""
    if has_image_suffix(member.name):
        return None
    if _suffix(member.name) in SIDECARS:
        return tar.extractfile(member).read() if packed and member.size <= MAX_SIDECAR_BYTES else None
    return tar.extractfile(member).read(16)


def _sample_items(path, name, key, sample, packed, seen) -> Iterator[Item]:
    beside = [(_suffix(m.name), m, c) for _, m, c in sample if _suffix(m.name) in SIDECARS]
    beside = [each for each in beside if each[1].size <= MAX_SIDECAR_BYTES]
    metadata = as_metadata([(suffix, content) for suffix, _, content in beside]) if packed else None
    sidecars = () if packed else tuple((suffix, member.offset_data, member.size) for suffix, member, _ in beside)
    for number, member, content in sample:
        if _suffix(member.name) in SIDECARS or not (has_image_suffix(member.name) or looks_like_image(content)):
            continue
        identity = f"{name}/{member.name.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')}"
        place = (number,) if packed else (member.offset_data, member.size)
        kind = "packed" if packed else "tar"
        yield Item(_unique(identity, seen), name, kind, path, key, place, sidecars, metadata)


def _unique(identity: str, seen: dict[str, int]) -> str:
    """The id, as ID#2 where it was given before: a tar may hold one name twice, and "NAME#2" as a name. `seen` holds
    all that were given, with the last number behind each."""
    number, unique = seen.get(identity, 1), identity
    while unique in seen:
        number += 1
        unique = f"{identity}#{number}"
    seen[identity] = number
    seen.setdefault(unique, 1)
    return unique
