"""The exceptions that say what a user can put right, or that the machine is wanted back."""

import signal

EXIT_RETRY = 75     # exit status EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again


class UserError(Exception):
  """Something the user can put right: bad input, a wrong field, a missing file.

  The message is one line that names the file, record or field, says what was
  found and what to do about it. The command line prints it without a traceback
  and leaves with status 2, or with that of a kind that says so.
  """
  status = 2


class UnreadableFile(Exception):
  """A file of a data set is missing, damaged or of no use. How many may be is the config's business.

  Attributes:
    path: of the file.
    reason: what is wrong with it, without its name.
    sha256: of its bytes, in hexadecimal; "" where there are none.
  """

  def __init__(self, path, reason: str, sha256: str = ""):
    super().__init__(str(path), reason, sha256)
    self.path, self.reason, self.sha256 = str(path), reason, sha256

  def __str__(self) -> str:
    return f"{self.path}: {self.reason}"


class Preempted(BaseException):
  """The run was asked to stop, and has saved what it had. No `Exception`: nobody handles it but the command line.

  Attributes:
    signal: that asked.
    status: to leave with: 75 after SIGTERM, so that launchers run the command again; 130 after Ctrl-C.
  """

  def __init__(self, asked_by: signal.Signals = signal.SIGTERM):
    super().__init__(f"stopped by {signal.Signals(asked_by).name}")
    self.signal = signal.Signals(asked_by)

  @property
  def status(self) -> int:
    return 130 if self.signal == signal.SIGINT else EXIT_RETRY
