"""All bits of an image reach its grayscale form, whatever its layout; sizes are checked before pixels are decoded."""

import pathlib
import resource
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from input_pipeline import images
from input_pipeline.image_files import formats
from input_pipeline.image_files.shades import map_levels, stretch_to_uint8, to_luminance
from tests.testing.foreign.mutated_files import encode

CASES = pathlib.Path(__file__).parents[2] / "cases" / "images"
# 12 bits in 16, as detectors deliver them: without its low byte, this image would have 16 shades.
DEEP = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)
DEEP[0, :2] = 0, 4095
SHADES = np.rint(DEEP * (255 / 4095)).astype(np.uint8)


def read_gray(data: bytes) -> np.ndarray:
  with formats.open_image(data, 10 ** 8) as image:
    image.load()
    return np.asarray(formats.to_grayscale(image))


def make_png(color_type: int, pixels: np.ndarray) -> bytes:
  """Returns a PNG of 16 bits per channel; color type 0: gray, 2: RGB, 4: gray and alpha, 6: RGB and alpha."""
  def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
  height, width = pixels.shape[:2]
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
  header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b""))


def make_tiff(pixels, photometric: int, planar: bool = False, deflate: bool = False, predictor: bool = False,
              order: str = "<") -> bytes:
  """Returns a TIFF of 16 bits per channel, pixels [height, width, channels], written from the specification."""
  height, width, channels = pixels.shape
  planes = [pixels[..., channel] for channel in range(channels)] if planar else [pixels]
  if predictor:
    planes = [np.diff(plane, axis=1, prepend=np.zeros_like(plane[:, :1])) for plane in planes]
  strips = [plane.astype(f"{order}u2").tobytes() for plane in planes]
  if deflate:
    strips = [zlib.compress(strip) for strip in strips]
  entries = {256: [width], 257: [height], 258: [16] * channels, 259: [8 if deflate else 1], 262: [photometric],
             273: [0] * len(strips), 277: [channels], 278: [height], 279: [len(strip) for strip in strips],
             284: [2 if planar else 1], 317: [2 if predictor else 1], 338: [2] * (channels in (2, 4))}
  entries = {tag: values for tag, values in entries.items() if values}
  end = 8 + 2 + 12 * len(entries) + 4
  size = sum(4 * len(values) for values in entries.values() if len(values) > 1)
  entries[273] = [end + size + sum(map(len, strips[:number])) for number in range(len(strips))]
  table, extra = b"", b""
  for tag, values in sorted(entries.items()):
    packed = struct.pack(f"{order}{len(values)}I", *values)
    if len(packed) > 4:
      extra, packed = extra + packed, struct.pack(f"{order}I", end + len(extra))
    table += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
  start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
  return start + struct.pack(f"{order}H", len(entries)) + table + bytes(4) + extra + b"".join(strips)


def channels(count: int, alpha: bool = False) -> np.ndarray:
  """Returns DEEP in `count` channels, the last one noise if it is alpha."""
  stacked = np.stack([DEEP] * count, -1)
  if alpha:
    stacked[..., -1] = np.random.default_rng(1).integers(0, 65536, DEEP.shape)
  return stacked


@pytest.mark.parametrize("color_type,count", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_png(color_type, count):
  data = make_png(color_type, channels(count, alpha=count in (2, 4)))
  assert np.array_equal(read_gray(data), SHADES)
  assert not formats.is_color(data, 10 ** 6)


@pytest.mark.parametrize("count,photometric", [(1, 1), (2, 1), (3, 2), (4, 2), (2, 0)])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("packing", ["raw", "deflate", "predictor"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_tiff(count, photometric, planar, packing, order):
  pixels = channels(count, alpha=count in (2, 4))
  data = make_tiff(pixels, photometric, planar, packing != "raw", packing == "predictor", order)
  assert np.array_equal(read_gray(data), 255 - SHADES if photometric == 0 else SHADES)


def test_sixteen_bits_of_other_formats():
  pgm = b"P5 30 20 65535\n" + DEEP.astype(">u2").tobytes()
  ppm = b"P6\n# a comment\n30 20\n4095\n" + channels(3).astype(">u2").tobytes()
  for data in (pgm, ppm, encode(DEEP, "JPEG2000"), bytes(cv2.imencode(".tiff", channels(3))[1])):
    assert np.array_equal(read_gray(data), SHADES)
  large = np.tile(channels(3), (4, 4, 1))           # OpenCV writes no small ones
  jpeg_2000 = bytes(cv2.imencode(".jp2", large, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1])
  assert np.array_equal(read_gray(jpeg_2000), np.tile(SHADES, (4, 4)))


def test_color_of_sixteen_bits_becomes_luminance():
  pixels = np.random.default_rng(2).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
  luminance = np.rint(pixels @ [.299, .587, .114])
  expected = np.rint((luminance - luminance.min()) * (255 / np.ptp(luminance)))
  for data in (make_png(2, pixels), make_tiff(pixels, 2), make_tiff(pixels, 2, planar=True)):
    assert np.array_equal(read_gray(data), expected)


def test_sixteen_bits_in_color_equal_eight_in_gray():
  gray = np.asarray(PIL.Image.open(CASES / "gray.png"))
  expected = np.rint((gray - int(gray.min())) * (255 / np.ptp(gray.astype(int))))      # deep images are stretched
  assert np.array_equal(read_gray((CASES / "rgb16_12bits.png").read_bytes()), expected)


@pytest.mark.parametrize("pixels,photometric", [(channels(4), 5), (channels(3), 6), (channels(3), 8)])
def test_layouts_that_lose_bits_are_refused(pixels, photometric):
  with pytest.raises(ValueError, match="16 bits"):
    read_gray(make_tiff(pixels, photometric))


@pytest.mark.parametrize("data", [
    make_png(0, DEEP), make_png(2, channels(3)), encode(SHADES, "JPEG"), encode(SHADES, "JPEG2000"),
    make_tiff(channels(1), 1), make_tiff(channels(3), 2), make_tiff(channels(2), 1), encode(SHADES, "WEBP"),
    encode(SHADES, "GIF"), encode(SHADES, "BMP"), b"P6 30 20 4095\n" + channels(3).tobytes()], ids=range(11))
def test_images_with_too_many_pixels_are_refused(data):
  assert images.to_jpeg(data, 0, max_pixels=DEEP.size)
  with pytest.raises(ValueError, match="max_image_pixels"):
    images.to_jpeg(data, 0, max_pixels=DEEP.size - 1)


def test_small_files_that_claim_huge_images_take_no_memory():
  def enlarge(tiff: bytes, side: int) -> bytes:
    for tag, value in ((256, 30), (257, 20), (278, 20)):
      tiff = tiff.replace(struct.pack("<HHII", tag, 4, 1, value), struct.pack("<HHII", tag, 4, 1, side))
    return tiff
  gray, color = make_tiff(channels(1), 1), make_tiff(channels(3), 2)
  png = make_png(0, DEEP).replace(struct.pack(">II", 30, 20), struct.pack(">II", 13300, 13300))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for data in (enlarge(gray, 12000), enlarge(gray, 60000), enlarge(color, 12000), enlarge(color, 8000), png):
    with pytest.raises((ValueError, OSError, PIL.Image.DecompressionBombError)):
      images.to_jpeg(data, 256)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000           # KB


@pytest.mark.parametrize("pixels", [DEEP, (DEEP // 16).astype(np.uint8)], ids=["deep", "eight bits"])
def test_films_of_one_shade_are_refused(pixels):
  for kind in ("PNG", "TIFF"):
    with pytest.raises(ValueError, match="single shade"):
      images.to_jpeg(encode(np.full_like(pixels, 77), kind), 0)
  with pytest.raises(ValueError, match="single shade"):
    images.to_jpeg(encode(np.full((20, 30), 77, np.uint8), "JPEG"), 0)


def test_a_jpeg_with_too_many_scans_for_its_size_is_refused(monkeypatch):
  monkeypatch.setattr(formats, "_MAX_SCANNED_PIXELS", 100 * DEEP.size)
  data = encode(SHADES, "JPEG", progressive=True)
  scan = data[data.rindex(b"\xff\xda"):-2]
  assert images.to_jpeg(data, 0) == data and data.count(b"\xff\xda") > 3
  with pytest.raises(ValueError, match="scans"):
    images.to_jpeg(data[:-2] + scan * 100 + data[-2:], 0)


def test_deep_pixels_take_little_memory():
  """10 million pixels of 16 bits: 20 MB as they are and 10 MB as shades, not 28 bytes each."""
  values = np.arange(10_000_000, dtype=np.uint16).reshape(2500, 4000)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  stretched = stretch_to_uint8(values)
  mapped = map_levels(values, lambda levels, counts: (levels >> 8).astype(np.uint8))
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 90_000           # KB
  assert np.array_equal(mapped, values >> 8) and stretched[0, -1] == np.rint(3999 * 255 / 65535)


def test_levels_of_all_types():
  rng = np.random.default_rng(3)
  for values in (rng.integers(-30000, 30000, (50, 40)).astype(np.int16),
                 rng.integers(0, 2 ** 32, (50, 40)).astype(np.uint32), rng.integers(0, 2, (50, 40)).astype(np.uint8)):
    seen = {}

    def convert(levels, counts):
      seen.update(zip(levels.tolist(), counts.tolist()))
      return (levels % 251).astype(np.uint8)

    assert np.array_equal(map_levels(values, convert), values.astype(np.int64) % 251)
    assert seen == dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True))))
  assert to_luminance(np.full((2, 2, 3), 65535, np.uint16)).tolist() == [[65535] * 2] * 2
