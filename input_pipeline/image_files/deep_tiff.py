"""TIFF files whose pixels have several channels of 16 bits, or planes, which Pillow reduces to 8 bits or can't read.

OpenCV reads red, green and blue that are stored pixel by pixel. For the other layouts Pillow is shown the same bytes as
grayscale: each channel, if they are stored one after the other; or, if the channels of a pixel follow each other, an
image that is so many times as wide.
"""

import io
import struct

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin

from input_pipeline.image_files import decoder_process
from input_pipeline.image_files.limits import check_size

_BIG_TIFF_MARKS = (b"II+\0", b"MM\0+")  # little-endian, big-endian
TIFF_MARKS = (b"II*\0", b"MM\0*", *_BIG_TIFF_MARKS)
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_OFFSETS, _CHANNELS, _ROWS, _SIZES, _PLANAR, _PREDICTOR, _FORMAT = 273, 277, 278, 279, 284, 317, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2      # photometric interpretations


def read_deep_channels(data: bytes, max_pixels: int) -> np.ndarray | None:
  """Returns gray or color with all its bits, uint16 [height, width] or [height, width, 3]; None for other files.

  Raises:
    ValueError: the file is too large, or has a layout that can't be read with all its bits.
    Exception: it is damaged.
  """
  is_big = data[:4] in _BIG_TIFF_MARKS
  directory = PIL.TiffImagePlugin.ImageFileDirectory_v2(data[:16 if is_big else 8])
  stream = io.BytesIO(data)
  stream.seek(directory.next)
  directory.load(stream)
  channels, bits = directory.get(_CHANNELS, 1), directory.get(_BITS, (1,))
  if max(bits) <= 8 or channels == 1 and directory.get(_PLANAR, 1) == 1:
    return None
  width, height, photometric = (int(directory[tag]) for tag in (_WIDTH, _HEIGHT, _PHOTOMETRIC))
  check_size((width, height), max_pixels)
  if directory.next:
    raise ValueError("a file with several pages, expected one image")
  expected = {_WHITE_IS_ZERO: (1, 2), _BLACK_IS_ZERO: (1, 2), _RGB: (3, 4)}.get(photometric, ())
  readable = channels in expected and set(bits) == {16} and set(directory.get(_FORMAT, (1,))) == {1} and (
      directory.get(_ORIENTATION, 1) == 1)
  if readable and photometric == _RGB and directory.get(_PLANAR, 1) == 1:
    return decoder_process.decode("deep_color", data, width * height * channels)
  if not readable or is_big or _OFFSETS not in directory:
    raise ValueError(f"a TIFF with {channels} channels of {max(bits)} bits in a layout that can't be read; convert it "
                     "to grayscale of 16 bits")
  offsets, sizes = directory[_OFFSETS], directory[_SIZES]
  if directory.get(_PLANAR, 1) == 2:
    strips = len(offsets) // channels
    planes = [_read_gray(data, directory, width, offsets[start:start + strips], sizes[start:start + strips])
              for start in range(0, strips * min(channels, 3), strips)]
    pixels = np.stack(planes, -1) if photometric == _RGB else planes[0]
  else:                                             # gray and alpha, pixel by pixel
    wide = _read_gray(data, directory, 2 * width, offsets, sizes, predictor=1)
    pixels = wide[:, ::2]
    if directory.get(_PREDICTOR, 1) == 2:           # each value is the difference from the pixel on its left
      pixels = np.cumsum(pixels, axis=1, dtype=np.uint16)
  return pixels.max() - pixels if photometric == _WHITE_IS_ZERO else pixels


def _read_gray(data: bytes, directory: PIL.TiffImagePlugin.ImageFileDirectory_v2, width: int, offsets: tuple,
               sizes: tuple, predictor: int | None = None) -> np.ndarray:
  """Returns strips of a file, decoded as an image in grayscale of 16 bits, uint16 [height, width]."""
  height = int(directory[_HEIGHT])
  order = ">" if data.startswith(b"MM") else "<"
  entries = {_WIDTH: (width,), _HEIGHT: (height,), _BITS: (16,), _COMPRESSION: (directory.get(_COMPRESSION, 1),),
             _PHOTOMETRIC: (_BLACK_IS_ZERO,), _OFFSETS: offsets, _CHANNELS: (1,),
             _ROWS: (min(directory.get(_ROWS, height), height),), _SIZES: sizes,
             _PREDICTOR: (directory.get(_PREDICTOR, 1) if predictor is None else predictor,)}
  start = len(data) + len(data) % 2
  values_start = start + 2 + 12 * len(entries) + 4
  table, values = struct.pack(f"{order}H", len(entries)), b""
  for tag, numbers in sorted(entries.items()):
    packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
    if len(packed) > 4:
      values, packed = values + packed, struct.pack(f"{order}I", values_start + len(values))
    table += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + packed             # 4: unsigned, 32 bits
  gray = (data[:4] + struct.pack(f"{order}I", start) + data[8:] + b"\0" * (start - len(data)) + table + bytes(4)
          + values)
  with PIL.Image.open(io.BytesIO(gray), formats=("TIFF",)) as image:
    return np.asarray(image).astype(np.uint16)
