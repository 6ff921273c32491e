"""How large an image may be."""

MAX_PIXELS = 80_000_000                # the default of data.max_image_pixels


def check_size(size: tuple[int, int], max_pixels: int) -> None:
  """Raises ValueError if an image of (width, height) has too many pixels."""
  if size[0] * size[1] > max_pixels:
    raise ValueError(f"{size[0]} x {size[1]} pixels, too large for data.max_image_pixels={max_pixels}")
