"""Finds out whether a file is DICOM, and parses it, with or without the preamble and the header that belong to one."""

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

from input_pipeline.dicom.fields import DicomError, get_integer, get_text

HEAD_SIZE = 132                        # bytes of a file by which `is_dicom` decides
_MAX_HEADER = 2 ** 25                  # bytes of a deflated file without its pixels
# Raised by pydicom for files that are truncated or inconsistent.
DAMAGE_ERRORS = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
                 ValueError, NotImplementedError, AssertionError, struct.error, zlib.error,
                 pydicom.errors.BytesLengthException)
_VALUE_REPRESENTATIONS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC "
                                   b"UI UL UN UR US UT UV".split())
_META_GROUP, _FIRST_GROUP = b"\x02\0", b"\x08\0"
# Warnings of pydicom quote the contents of the file.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")


def is_dicom(head: bytes) -> bool:
  """Returns whether a file is DICOM, by its first HEAD_SIZE bytes.

  A file without the preamble of 128 bytes and the mark after it, as older software writes them, is recognized by its
  first element: the tag of the lowest group that occurs, a type, and a length that suits that element.
  """
  if head[128:132] == b"DICM":
    return True
  element, kind = head[2:4], head[4:6]
  if len(head) < 16 or head[:2] not in (_META_GROUP, _FIRST_GROUP) or element[1:] != b"\0":
    return False
  if kind in _VALUE_REPRESENTATIONS:
    return element[0] <= 0x20
  # Implicit VR: the length of a group's length, a character set, image type, date or UID.
  return head[:2] == _FIRST_GROUP and element[0] <= 0x20 and 0 <= int.from_bytes(head[4:8], "little") <= 256


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
  if file.read(2) != _META_GROUP:
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
