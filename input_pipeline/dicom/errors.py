"""How a problem of a DICOM file is reported, without anything that the file says."""

from collections.abc import Callable

Warn = Callable[[str], None]           # takes a warning: one line without personal data


class DicomError(ValueError):
  """A DICOM file has no image that can be read; the message is one line without personal data."""


def ignore_warning(warning: str) -> None:
  """Does nothing with a warning."""
  del warning
