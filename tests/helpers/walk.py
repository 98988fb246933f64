"""Counts the files of jsq that a job passes through, and the calls between these files."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import jsq

PACKAGE = str(Path(jsq.__file__).parent)


@dataclass
class Walk:
    """The calls of this thread during a recording.

    A coroutine that resumes is not a new call: each frame counts once. The frames are kept until the end,
    because Python may reuse the id of a deleted frame.
    """

    files: set[str] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)
    _frames: dict[int, FrameType] = field(default_factory=dict)

    @property
    def file_count(self) -> int:
        return len(self.files)

    @property
    def call_count(self) -> int:
        return len(self.calls)

    def note(self, frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(PACKAGE) or id(frame) in self._frames:
            return
        self._frames[id(frame)] = frame
        self.files.add(file)
        caller = frame.f_back.f_code.co_filename if frame.f_back else ""
        if caller.startswith(PACKAGE) and caller != file:
            self.calls.append((caller, file))

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        before = sys.getprofile()
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(before)
            self._frames.clear()

    def __str__(self) -> str:
        names = sorted(Path(file).relative_to(PACKAGE).as_posix() for file in self.files)
        return f"{self.file_count} files, {self.call_count} calls between files: {', '.join(names)}"
