"""Lookup tables of DICOM files (PS3.3 C.11.1.1, C.11.2.1.1) in all the forms in which they are written."""

import numpy as np
import pydicom

from input_pipeline.dicom.errors import DicomError, Warn
from input_pipeline.dicom.fields import get_values


def apply_table(item: pydicom.Dataset, levels: np.ndarray, dataset: pydicom.Dataset, warn: Warn,
                is_modality: bool) -> np.ndarray:
  """Returns the entry of a table for each level; levels beyond its ends get its first or last entry.

  Args:
    item: the item of ModalityLUTSequence or VOILUTSequence.
    levels: numbers [L], in ascending order.
    dataset: the file.
    warn: takes a warning if the table is odd. If it is unusable, the levels are returned.
    is_modality: whether it is of the modality transformation, where 8 and 16 bits are allowed; else of a window, where
      8 and 10 to 16 bits are.
  """
  try:
    first, bits, table = _read_table(item, not dataset.original_encoding[1])
  except DicomError as error:
    warn(f"{error}: the table is ignored")
    return levels
  if bits not in ((8, 16) if is_modality else (8, *range(10, 17))):
    warn(f"a lookup table of {bits} bits: read as one of {8 if bits < 8 else 16}")
  if first >= 2 ** 15 and levels[0] < 0:            # a negative level, written as unsigned
    first -= 2 ** 16
  positions = np.floor(np.asarray(levels, np.float64)) - first
  return table[positions.clip(0, len(table) - 1).astype(np.int64)]


def _read_table(item: pydicom.Dataset, big_endian: bool) -> tuple[int, int, np.ndarray]:
  """Returns the level of the first entry, the bits per entry, and the entries.

  The descriptor gives the number of entries (0: 65,536), the first level, and the bits per entry. Entries are words of
  16 bits. Those of 8 bits may also be packed, two in a word.

  Raises:
    DicomError: a field is missing, or is not what the other says; without the words "DICOM file".
  """
  try:
    size, first, bits = (int(value) for value in get_values(item, "LUTDescriptor"))
  except (TypeError, ValueError) as error:
    raise DicomError("LUTDescriptor is not three numbers") from error
  size = size % 2 ** 16 or 2 ** 16                  # as signed numbers, large sizes are negative
  if not 1 <= bits <= 16:
    raise DicomError("LUTDescriptor has a number of bits that is not 8 to 16")
  values = get_values(item, "LUTData")
  if len(values) == 1 and isinstance(values[0], (bytes, bytearray)):
    data = bytes(values[0])
    words = np.frombuffer(data[:len(data) // 2 * 2], ">u2" if big_endian else "<u2")
  else:
    try:
      words = np.array([int(value) % 2 ** 16 for value in values], np.uint16)
    except (TypeError, ValueError) as error:
      raise DicomError("LUTData is not numbers") from error
  if bits <= 8 and len(words) < size:
    words = words.astype("<u2").view(np.uint8)
  if len(words) >= size:
    return first, bits, words[:size].astype(np.int64)
  raise DicomError("LUTData has fewer entries than LUTDescriptor says")
