"""What is annotated, one `Item` an image, and what kind of file a file is, told by its content."""

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .dib .tif .tiff .avif .heic .heif .jp2 .ppm .pgm .pbm .pnm .tga".split()
)
MAX_IMAGE_BYTES = 512 << 20  # encoded; a larger member of a tar is no picture
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")


@dataclass(frozen=True, slots=True)
class Item:
    """One image before it is read. Plain values, so that it crosses to other processes and machines.

    Attributes:
        id: names it in every output, once: the path as typed, with the member or the row behind it.
        source: the file that holds it, written as in `id`.
        kind: "file", "url", "tar" (an uncompressed one), "packed" (in a compressed tar), "row" (of a table), or "error"
            where something that would hold images could not be listed.
        path: what is opened.
        key: WebDataset's key of the sample; of a row it is known when the row is read.
        place: (offset, bytes) in a tar, (member's number,) in a compressed one, (split, row, column) in a table.
        sidecars: (suffix, offset, bytes) of the files that share the key, in an uncompressed tar.
        metadata: JSON of them, in a compressed one.
        error: why there is nothing to read.
    """

    id: str
    source: str
    kind: str
    path: str = ""
    key: str | None = None
    place: tuple = ()
    sidecars: tuple = ()
    metadata: str | None = None
    error: str | None = None


def shown_name(path: str) -> str:
    """A path as ids write it: without ./ and //, with / on every system, and UTF-8 whatever the file is called."""
    name = os.path.normpath(path).replace(os.sep, "/")
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def too_large(length: int) -> str:
    """The error of an image beyond MAX_IMAGE_BYTES."""
    return f"it has {length} bytes, more than the {MAX_IMAGE_BYTES} of an image"


def as_json(values) -> str:
    """JSON, with null for numbers that it cannot say (NaN, infinity) and text for what it does not know."""
    try:
        return json.dumps(values, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(values, ensure_ascii=False, default=str)
        return json.dumps(json.loads(text, parse_constant=lambda name: None), ensure_ascii=False)


def in_shard(identity: str, shard: int, num_shards: int) -> bool:
    """Whether an id is of this shard. Its hash says so: images that come or go later move no other one."""
    digest = hashlib.blake2b(identity.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % num_shards == shard


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def looks_like_image(head: bytes) -> bool:
    """Whether these first bytes (16 will do) are those of an image format."""
    riff = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    heif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    return head.startswith(_MAGIC) or riff or heif or (head[:1] == b"P" and head[1:3] in (b"5\n", b"6\n", b"4\n"))


def kind_of_file(path: str) -> str:
    """ "image", "tar", "parquet", "text" or "other", by content; names decide where the content is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
    suffix = os.path.splitext(path)[1].lower()
    if head[:4] == b"PAR1" or suffix == ".parquet":
        return "parquet"
    if looks_like_image(head) or suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in (".tar", ".tgz") or (head.strip(b"\0") and tarfile.is_tarfile(path)):  # zeros are an empty tar too
        return "tar"
    try:
        text = head[:-4].decode("utf-8") if len(head) == 4096 else head.decode("utf-8")  # not cut within a letter
    except UnicodeDecodeError as error:
        if error.start < len(head) - 8:
            return "other"
        text = ""
    return "text" if head and "\0" not in text else "other"
