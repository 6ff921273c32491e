"""Finds out whether a file is DICOM, by its first bytes."""

HEAD_SIZE = 132                        # bytes of a file by which `is_dicom` decides
META_GROUP, _FIRST_GROUP = b"\x02\0", b"\x08\0"
_VALUE_REPRESENTATIONS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC "
                                   b"UI UL UN UR US UT UV".split())


def is_dicom(head: bytes) -> bool:
  """Returns whether a file is DICOM, by its first HEAD_SIZE bytes.

  A file without the preamble of 128 bytes and the mark after it, as older software writes them, is recognized by its
  first element: the tag of the lowest group that occurs, a type, and a length that suits that element.
  """
  if head[128:132] == b"DICM":
    return True
  element, kind = head[2:4], head[4:6]
  if len(head) < 16 or head[:2] not in (META_GROUP, _FIRST_GROUP) or element[1:] != b"\0":
    return False
  if kind in _VALUE_REPRESENTATIONS:
    return element[0] <= 0x20
  # Implicit VR: the length of a group's length, a character set, image type, date or UID.
  return head[:2] == _FIRST_GROUP and element[0] <= 0x20 and 0 <= int.from_bytes(head[4:8], "little") <= 256
