"""Runs `argus` with the arguments given and prints the number of rows whenever some are on the disk; for the test that
kills it. With a last argument `--dies-when-moved`, it kills itself when its first file is moved and the journal is not
yet removed."""

import os
import signal
import sys

from argus_tools.annotate import shards
from argus_tools.cli import main

add = shards.ShardWriter.add


def add_and_tell(self, rows):
    add(self, rows)
    print("rows", len(self.done), flush=True)


def move_and_die(path, write):
    whole(path, write)
    if path.name.startswith("annotations-"):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    shards.ShardWriter.add = add_and_tell
    arguments = sys.argv[1:]
    if arguments[-1] == "--dies-when-moved":
        arguments.pop()
        whole, shards.write_whole = shards.write_whole, move_and_die
    sys.exit(main(arguments))
