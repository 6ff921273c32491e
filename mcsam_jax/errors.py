"""Errors that the command line reports in one line: what a user can fix, and requests to stop."""

import os
import signal

EXIT_RETRY = 75     # exit status EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again


class UserError(Exception):
  """Something that the user can fix: bad input, a wrong field, a missing file.

  The message is one line that names the file, record or field, and says what was found, what was expected and what to
  do. The command line prints it without a traceback and exits with `status`: 2, unless a subclass sets another.
  """
  status = 2


class UnreadableFile(Exception):
  """A file of a data set is missing, damaged or unusable; the config decides how many are tolerated.

  Attributes:
    path: path of the file.
    reason: what is wrong with it, without its name.
    sha256: digest of its bytes, in hexadecimal; "" if it has none.
  """

  def __init__(self, path: str | os.PathLike, reason: str, sha256: str = ""):
    super().__init__(str(path), reason, sha256)
    self.path, self.reason, self.sha256 = str(path), reason, sha256

  def __str__(self) -> str:
    return f"{self.path}: {self.reason}"


class Preempted(BaseException):
  """A signal asked the run to stop, and it has saved its state.

  It is not an `Exception`, so that only the command line handles it.

  Attributes:
    signal: the signal.
    status: exit status: 75 after SIGTERM, so that launchers run the command again; 130 after Ctrl-C.
  """

  def __init__(self, received: int = signal.SIGTERM):
    super().__init__(f"stopped by {signal.Signals(received).name}")
    self.signal = signal.Signals(received)

  @property
  def status(self) -> int:
    return 130 if self.signal == signal.SIGINT else EXIT_RETRY


def printable(text: str, max_length: int = 200) -> str:
  """Returns a text of unknown origin, safe to print: control characters as escapes, and cut to `max_length`."""
  text = text if len(text) <= max_length else f"{text[:max_length]}..."
  return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
