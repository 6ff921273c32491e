"""Values of DICOM fields, from files whose writers didn't follow the standard."""

from collections.abc import Iterable
import math
from typing import Any

import pydicom
import pydicom.multival

from input_pipeline.dicom.errors import DicomError, Warn


def get_values(dataset: pydicom.Dataset, keyword: str) -> list:
  """Returns the values of a field, [] if it is absent or empty; texts for a number that pydicom can't read."""
  if keyword not in dataset:
    return []
  try:
    value = dataset[keyword].value
  except Exception:                                 # pydicom raises many types for values that don't fit the field
    raw = dataset.get_item(keyword)
    raw = raw.value if raw is not None else b""
    value = raw.decode("latin-1").split("\\") if isinstance(raw, bytes) else raw
  if value is None or isinstance(value, (str, bytes)) and not value.strip():
    return []
  is_list = isinstance(value, (list, tuple, pydicom.multival.MultiValue, pydicom.Sequence))
  return list(value) if is_list else [value]


def get_text(dataset: pydicom.Dataset, keyword: str) -> str:
  """Returns the first value of a field as text without surrounding spaces, "" if it is absent."""
  values = get_values(dataset, keyword)
  return str(values[0]).strip(" \0\t\r\n") if values and values[0] is not None else ""


def get_display_number(dataset: pydicom.Dataset, keyword: str, warn: Warn) -> float | None:
  """Returns the first value of a field, None if it is absent; an odd value is repaired or ignored, with a warning."""
  text = get_text(dataset, keyword)
  if not text:
    if keyword in dataset:
      warn(f"{keyword} is empty: ignored")
    return None
  number = _parse_number(text)
  if number is None and "," in text:
    number = _parse_number(text.replace(",", "."))
    if number is not None:
      warn(f"{keyword} has a decimal comma: read as a point")
  if number is None:
    warn(f"{keyword} is not a number: ignored")
  return number


def get_integer(dataset: pydicom.Dataset, keyword: str, allowed: Iterable[int], default: int | None = None) -> int:
  """Returns the value of a field on which the meaning of the pixels depends.

  Args:
    allowed: the values that it may have, in ascending order.
    default: value of an absent field; None: it must be present.

  Raises:
    DicomError: it is absent, or has another value.
  """
  text = get_text(dataset, keyword)
  if not text and default is not None:
    return default
  expected = (f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) and len(allowed) > 2 else
              " or ".join(map(str, allowed)))
  if not text:
    raise DicomError(f"a DICOM file without {keyword}, expected {expected}")
  number = _parse_number(text)
  if number is None or number != int(number):
    raise DicomError(f"a DICOM file whose {keyword} is not a number, expected {expected}")
  if int(number) not in allowed:
    raise DicomError(f"a DICOM file whose {keyword} is {int(number)}, expected {expected}")
  return int(number)


def get_sequence_item(dataset: pydicom.Dataset, keyword: str) -> pydicom.Dataset | None:
  """Returns the first item of a sequence, None if there is none."""
  values: list[Any] = get_values(dataset, keyword)
  return values[0] if values and isinstance(values[0], pydicom.Dataset) else None


def _parse_number(text: str) -> float | None:
  try:
    number = float(text)
  except ValueError:
    return None
  return number if math.isfinite(number) else None
