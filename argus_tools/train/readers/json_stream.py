"""JSON files of several gigabytes, one record at a time: the elements of the big array, or of the arrays in the object.

Python's own decoder reads each element out of a buffer that grows only when an element is longer than it. So memory is
that of one element and 16 MB of text, whatever the file's size.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

CHUNK = 1 << 24  # characters
_SPACE = re.compile(r"[ \t\r\n]*")
# The longest piece that the decoder reports from its beginning when the file's end cuts it: "-Infinity".
_LITERAL = 10


def iterate_json(path: str | os.PathLike, chunk: int = CHUNK) -> Iterator[tuple[str | None, Any]]:
    """Yields (None, element) of a top-level array; (key, value) of a top-level object, for each element of an array in
    it (key, element).

    Raises ValueError, which names the file and how many elements were read, for what is no JSON, cut off or neither
    array nor object; OSError where there is no such file.
    """
    with open(path, encoding="utf-8-sig") as file:
        yield from _Scanner(file, path, chunk).top()


class _Scanner:
    def __init__(self, file, path, chunk: int):
        self.file, self.path, self.chunk = file, path, chunk
        self.buffer, self.place, self.done, self.count = "", 0, False, 0
        self.decoder = json.JSONDecoder()

    def top(self):
        opening = self.next_character()
        if opening == "[":
            self.place += 1
            yield from self.array(None)
        elif opening == "{":
            self.place += 1
            yield from self.object()
        else:
            raise self.error(f"begins with {opening!r}, where a JSON array or object was expected")
        if rest := self.next_character():
            raise self.error(f"goes on with {rest!r} behind its end")

    def object(self):
        if self.next_character() == "}":
            self.place += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self.error(f"has the key {key!r}, which is no string")
            self.expect(":")
            if self.next_character() == "[":
                self.place += 1
                yield from self.array(key)
            else:
                yield key, self.value()
                self.count += 1
            if self.expect(",}") == "}":
                return

    def array(self, key):
        if self.next_character() == "]":
            self.place += 1
            return
        while True:
            yield key, self.value()
            self.count += 1
            if self.expect(",]") == "]":
                return

    def expect(self, characters: str) -> str:
        found = self.next_character()
        if not found or found not in characters:
            raise self.error(f"has {found!r} where one of {characters!r} was expected" if found else "is cut off")
        self.place += 1
        return found

    def next_character(self) -> str:
        """The next one that is no white space, "" at the end."""
        while True:
            self.place = _SPACE.match(self.buffer, self.place).end()
            if self.place < len(self.buffer):
                return self.buffer[self.place]
            if self.done:
                return ""
            self.read_on(self.chunk)

    def value(self):
        self.next_character()
        wanted = self.chunk
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.place)
                if end < len(self.buffer) or self.done:  # else a number may go on
                    self.place = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - _LITERAL
                if self.done:
                    raise self.error("is cut off" if cut else f"is no JSON there: {error.msg}") from None
                if not cut:
                    raise self.error(f"is no JSON there: {error.msg}") from None
            except RecursionError:
                raise self.error("is nested too deeply") from None
            self.read_on(wanted)
            wanted *= 2  # so that a long element is not scanned again and again

    def read_on(self, size: int) -> None:
        try:
            more = self.file.read(size)
        except UnicodeDecodeError as error:
            raise self.error(f"is not UTF-8 there: {error.reason}") from None
        self.buffer, self.place, self.done = self.buffer[self.place :] + more, 0, not more

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.path}, behind {self.count} whole records, {what}. Is the file complete?")
