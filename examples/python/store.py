"""What a consumer remembers: its place in the log, and the newest events."""

import collections
import os
import pathlib


class CursorStore:
    """Keeps the place in the log in a file. A service with a database stores the cursor there, in
    the transaction of its work: then nothing is ever processed twice."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        # The place after what was processed; empty at first.
        self.cursor = path.read_text().strip() if path.exists() else ""

    def save(self, cursor: str) -> None:
        """Replaces the file as a whole: a crash leaves the old cursor or the new one."""
        if cursor == self.cursor:
            return
        beside = self.path.with_name(self.path.name + ".new")
        with beside.open("w") as file:
            file.write(cursor + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self.cursor = cursor


class Recent:
    """The newest keys, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.keys: collections.OrderedDict[tuple[str, str], None] = collections.OrderedDict()

    def add(self, key: tuple[str, str]) -> bool:
        """Whether the key is new."""
        if key in self.keys:
            return False
        self.keys[key] = None
        if len(self.keys) > self.limit:
            self.keys.popitem(last=False)
        return True
