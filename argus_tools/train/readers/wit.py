"""WIT, the Wikipedia-based image text data (Srinivasan et al., 2021): the rows of wit_v1.train.all-*.tsv.gz.

17 columns with a header line; read here: language, image_url, mime_type and the three captions. The files hold urls
and no images, which one fetches oneself; read a row at a time, whatever the files' size.
"""

import csv
import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from modeling_argus.tasks_argus import TASK_PROMPTS

from .reading import Reader, import_datasets, one_turn, shorten

COLUMNS = {
    "reference": "caption_reference_description",
    "attribution": "caption_attribution_description",
    "alt": "caption_alt_text_description",
}
_NEEDED = ("language", "image_url", "mime_type", *COLUMNS.values())
_READABLE = ("image/jpeg", "image/png", "image/gif", "image/webp", "image/tiff", "image/bmp")
_LONGEST = 1 << 24  # characters of a field; csv's own limit is under a section of a long page


@dataclass(eq=False)
class WiT(Reader):
    """One sample a row that has a caption. `path` is one file (.tsv or .tsv.gz) or a folder with several.

    Rows of other languages, without the caption, or of pictures that are drawings (svg) are left out.

    Args:
        language: Wikipedia's code, "en", or "all".
        caption: "reference" (what stands below the image on the page), "attribution" (on the image's own page) or
            "alt".
        names: how the image files below `images` are called: "name", as in the url with its percent signs resolved;
            or "md5" or "sha256", the hex digest of the url as it stands in the row, and the url's ending in lower case.
        prompt: what the user says; default: the caption task's prompt.
    """

    language: str = "en"
    caption: str = "reference"
    names: str = "name"
    prompt: str = TASK_PROMPTS["caption"]

    NAME: ClassVar[str] = "wit"
    TAKES_FOLDER: ClassVar[bool] = True
    CHOICES: ClassVar = {**Reader.CHOICES, "caption": tuple(COLUMNS), "names": ("name", "md5", "sha256")}
    SHOWN: ClassVar = ("prompt",)

    def features(self):
        return {"file": import_datasets().Value("string"), "caption": import_datasets().Value("string")}

    def sources(self):
        if not self.path.is_dir():
            return [self.path]
        files = sorted([*self.path.glob("*.tsv"), *self.path.glob("*.tsv.gz")])
        if not files:
            raise FileNotFoundError(f"{self._who()}: there is no .tsv or .tsv.gz file in {self.path}.")
        return files

    def records(self, notes):
        for path in self.sources():
            limit = csv.field_size_limit(_LONGEST)
            try:
                yield from self._rows(path)
            finally:
                csv.field_size_limit(limit)

    def _rows(self, path: Path):
        number = -1
        opened = gzip.open if path.suffix == ".gz" else open
        try:
            with opened(path, "rt", encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, delimiter="\t")
                lacking = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
                if lacking:
                    raise ValueError(f"{path} lacks the column {lacking[0]!r}: its first line must name WIT's columns.")
                for number, row in enumerate(reader):
                    if None in row or None in row.values():
                        raise ValueError(f"{path}, record {number}: it has not as many columns as the first line.")
                    caption = " ".join(row[COLUMNS[self.caption]].split())
                    readable = row["mime_type"] in _READABLE
                    if caption and readable and self.language in ("all", row["language"]):
                        image = self._image(row["image_url"], f"{path}, record {number}")
                        yield {"record": number, "images": [image], "file": path.name, "caption": caption}
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read behind record {number}: {error}. Is it complete?") from error

    def _image(self, url: str, where: str) -> str:
        name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        if not name or name in (".", "..") or os.sep in name:
            raise ValueError(f"{where}: image_url {shorten(url)} names no file.")
        if self.names == "name":
            return name
        return hashlib.new(self.names, url.encode()).hexdigest() + os.path.splitext(name)[1].lower()

    def where_of(self, row):
        folder = self.path if self.path.is_dir() else self.path.parent
        return f"{folder / row['file']}, record {row['record']}"

    def talk(self, row, images, where):
        return (one_turn(self.prompt, row["caption"]),), ()
