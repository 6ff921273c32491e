"""Parses DICOM files, with or without the preamble and the header that belong to one."""

import io
import logging
import re
import struct
from typing import BinaryIO
import warnings
import zlib

import pydicom
import pydicom.errors
import pydicom.filereader
import pydicom.uid

from input_pipeline.dicom.errors import DicomError
from input_pipeline.dicom.fields import get_integer, get_text
from input_pipeline.dicom.signature import HEAD_SIZE, META_GROUP

_MAX_HEADER = 2 ** 25                  # bytes of a deflated file without its pixels
# Raised by pydicom for files that are truncated or inconsistent.
DAMAGE_ERRORS = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
                 ValueError, NotImplementedError, AssertionError, struct.error, zlib.error,
                 pydicom.errors.BytesLengthException)
# Warnings of pydicom quote the contents of the file.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")


def parse(file: BinaryIO, max_pixels: int, **options) -> pydicom.Dataset:
  """Returns the content of an open file; its transfer syntax, if the file names none, is that of its header.

  Args:
    file: open for reading.
    max_pixels: a deflated file whose image is larger is refused before it is inflated.
    **options: of `pydicom.dcmread`.

  Raises:
    DicomError: a deflated file is damaged or too large.
    Exception: DAMAGE_ERRORS.
  """
  if get_text(_read_meta(file), "TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
    file = io.BytesIO(_inflate(file.read(), max_pixels))
  else:
    file.seek(0)
  parsed = pydicom.dcmread(file, force=True, **options)
  if not get_text(parsed.file_meta, "TransferSyntaxUID"):
    implicit, little_endian = parsed.original_encoding
    parsed.file_meta.TransferSyntaxUID = (
        pydicom.uid.ImplicitVRLittleEndian if implicit else
        pydicom.uid.ExplicitVRLittleEndian if little_endian else pydicom.uid.ExplicitVRBigEndian)
  return parsed


def describe_damage(error: Exception) -> str:
  """Returns a message for an error of a library, without quoting it."""
  match = re.search(r"less than expected \((\d+) vs (\d+) bytes\)", str(error))
  if match:
    return f"a truncated DICOM file: {match[1]} of {match[2]} bytes of pixels"
  if isinstance(error, MemoryError):
    return "a DICOM file that takes more memory than there is"
  return "a damaged DICOM file: it can't be parsed, or its header and its pixels are inconsistent"


def check_size(dataset: pydicom.Dataset, max_pixels: int) -> tuple[int, int]:
  """Returns the rows and columns of an image.

  Raises:
    DicomError: they are missing, or their product is more than `max_pixels`.
  """
  rows, columns = (get_integer(dataset, keyword, range(1, 2 ** 16)) for keyword in ("Rows", "Columns"))
  if rows * columns > max_pixels:
    raise DicomError(f"a DICOM image of {rows} x {columns} pixels, too large for data.max_image_pixels={max_pixels}")
  return rows, columns


def _read_meta(file: BinaryIO) -> pydicom.Dataset:
  """Returns the elements of the group 0002 and leaves `file` behind them."""
  start = HEAD_SIZE if file.read(HEAD_SIZE)[128:] == b"DICM" else 0
  file.seek(start)
  if file.read(2) != META_GROUP:
    return pydicom.Dataset()
  file.seek(start)
  return pydicom.filereader.read_dataset(file, is_implicit_VR=False, is_little_endian=True,
                                         stop_when=lambda tag, vr, length: tag.group != 2)


def _inflate(data: bytes, max_pixels: int) -> bytes:
  """Returns the elements behind the header of a deflated file.

  A few bytes may inflate to gigabytes. So the part that holds the header comes first, then as much as it announces.
  """
  stream = zlib.decompressobj(-zlib.MAX_WBITS)
  inflated = stream.decompress(data, _MAX_HEADER)
  if not stream.eof and stream.unconsumed_tail:
    header = pydicom.dcmread(io.BytesIO(inflated), force=True, stop_before_pixels=True)
    rows, columns = check_size(header, max_pixels)
    bits = get_integer(header, "BitsAllocated", (1, 8, 16, 32)) * get_integer(header, "SamplesPerPixel", (1, 3))
    limit = _MAX_HEADER + rows * columns * bits // 8
    inflated += stream.decompress(stream.unconsumed_tail, limit)
    if not stream.eof and stream.unconsumed_tail:
      raise DicomError("a deflated DICOM file that is larger than its header says")
  return inflated
