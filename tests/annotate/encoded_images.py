"""Encoded images, tars of them, and reading them as a worker does; for the tests of annotating."""

import io
import json
import tarfile

from PIL import Image

from argus_tools.annotate.feeding import tasks
from argus_tools.annotate.preparing import prepare
from processing_argus import ArgusImageProcessor


def encoded(size=(8, 6), color="red", kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def read_all(items):
    """{id: (size, key, metadata, error)} of images read as a worker reads them."""
    processor = ArgusImageProcessor(tile_size=32)
    results = [prepare(task, processor, {}) for task in tasks(items)]
    assert len(results) == len(items)
    return {r.id: (r.size, r.key, r.metadata and json.loads(r.metadata), r.error) for r in results}
