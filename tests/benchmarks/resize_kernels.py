"""Times TensorFlow's resizing kernels and OpenCV's on one core, and prints microseconds per image.

  python tests/benchmarks/resize_kernels.py

An image of 256 x 256 pixels is decoded, and resized to 224 x 224. TensorFlow's operations run in a loop inside one
graph, so that no time of Python counts. Each figure is the fastest of several rounds.
"""

from collections.abc import Callable
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2  # noqa: E402  (after the environment variable, which TensorFlow reads when it is imported)
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

STORED, SIZE = 256, 224
REPEATS, ROUNDS = 500, 7


def time_in_graph(operation: Callable[[tf.Tensor], tf.Tensor], argument: tf.Tensor) -> float:
  """Returns microseconds per call of a TensorFlow operation."""
  @tf.function
  def loop(tensor: tf.Tensor) -> tf.Tensor:
    total = tf.constant(0.0)
    for number in tf.range(REPEATS):
      # Depends on the number, so that the operation isn't moved out of the loop.
      result = operation(tf.reshape(tensor, tf.shape(tensor) + 0 * number))
      total += tf.cast(tf.reshape(result, [-1])[0], tf.float32)
    return total

  return time_fastest(lambda: loop(argument)) / REPEATS


def time_fastest(function: Callable[[], object]) -> float:
  """Returns the microseconds of the fastest of several calls."""
  function()
  seconds = []
  for _ in range(ROUNDS):
    started = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - started)
  return min(seconds) * 1e6


def main() -> None:
  """Prints the table."""
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
  cv2.setNumThreads(1)
  smooth = cv2.GaussianBlur(np.random.default_rng(0).normal(128, 300, (STORED, STORED)), (0, 0), 3)
  pixels = np.clip(smooth, 0, 255).astype(np.uint8)
  jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
  image = tf.constant(pixels[None, ..., None])

  def resize(images: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ResizeBilinear(images=images, size=(SIZE, SIZE), half_pixel_centers=True)

  rows = {
      "an empty loop": time_in_graph(lambda tensor: tensor, image),
      "decode, TensorFlow": time_in_graph(
          lambda text: tf.io.decode_jpeg(text[0], channels=1, dct_method="INTEGER_ACCURATE"), tf.constant([jpeg])),
      "decode, OpenCV": time_fastest(
          lambda: [cv2.imdecode(np.frombuffer(jpeg, np.uint8), 0) for _ in range(REPEATS)]) / REPEATS,
      "resize uint8, TensorFlow": time_in_graph(resize, image),
      "resize float32, TensorFlow, with casts and rounding": time_in_graph(
          lambda tensor: tf.cast(tf.round(resize(tf.cast(tensor, tf.float32))), tf.uint8), image),
      "resize uint8, OpenCV": time_fastest(
          lambda: [cv2.resize(pixels, (SIZE, SIZE)) for _ in range(REPEATS)]) / REPEATS,
  }
  print(f"a JPEG of {len(jpeg)} bytes, {STORED} x {STORED} to {SIZE} x {SIZE}, microseconds per image:")
  for name, microseconds in rows.items():
    print(f"{microseconds:8.0f}  {name}")


if __name__ == "__main__":
  main()
