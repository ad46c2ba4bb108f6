"""Runs `argus` with the arguments given and prints the number of rows whenever some are on the disk; for the tests of a
run that is killed. It kills itself, as the kernel would, so that no test has to be quick: with a last argument
`--dies-with=N` when N rows are on the disk, some of them in the journal, and it has said how many workers live; with
`--dies-when-moved` when its first file is moved and the journal is not yet removed."""

import multiprocessing
import os
import signal
import sys

from argus_tools.annotate import shards
from argus_tools.cli import main

add = shards.ShardWriter.add


def add_and_tell(self, rows):
    add(self, rows)
    print("rows", len(self.done), flush=True)


def add_and_die(self, rows):
    add_and_tell(self, rows)
    if len(self.done) >= enough and self._rows:
        print("workers", len(multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def move_and_die(path, write):
    whole(path, write)
    if path.name.startswith("annotations-"):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    shards.ShardWriter.add = add_and_tell
    arguments = sys.argv[1:]
    if arguments[-1].startswith("--dies-with="):
        enough = int(arguments.pop().partition("=")[2])
        shards.ShardWriter.add = add_and_die
    elif arguments[-1] == "--dies-when-moved":
        arguments.pop()
        whole, shards.write_whole = shards.write_whole, move_and_die
    sys.exit(main(arguments))
