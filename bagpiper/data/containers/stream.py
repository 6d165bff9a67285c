"""What a file is cut into before it is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass


@dataclass(frozen=True)
class Unread:
    """Sound that is in a file and that the decoder leaves there.

    Attributes:
        what: in words, for messages.
        seconds: how long it is; None where that cannot be told.
    """

    what: str
    seconds: float | None = None


@dataclass(frozen=True)
class Stream:
    """A sound that libsndfile reads from end to end.

    Attributes:
        file: what libsndfile is given: the file itself, or a part of it in memory.
        end: where in the file this sound ends at the earliest; None where libsndfile is to say that, by where it stands
            after the last sample.
        samples: that must come out of it; None where the header is to be believed.
        slack: samples fewer than promised that the format allows.
        damaged: whether a part of it is damaged or cut off.
        unread: sound that libsndfile will not see.
    """

    file: io.BufferedIOBase
    end: int | None = None
    samples: int | None = None
    slack: int = 0
    damaged: bool = False
    unread: Unread | None = None


class Source:
    """A file as libsndfile wants it: to seek where nothing is (a damaged header sends it there) is no exception.

    It also has no name, from which soundfile would draw conclusions.
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.read, self.readinto, self.tell, self._file = file.read, file.readinto, file.tell, file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return self.tell()
