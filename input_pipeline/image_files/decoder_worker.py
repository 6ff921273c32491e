"""The process in which decoders run that may crash, hang or take all memory. `decoder_process.py` starts it.

It takes one job after another from the socket that is its standard input: the length of a JSON header, the header, and
the encoded bytes. The answer has the same form: a header with shape and type, and the pixels, or a header with an
error. It imports neither JAX nor TensorFlow.
"""

import io
import json
import math
import resource
import signal
import socket
import struct

import numpy as np
import PIL.Image

_LENGTH = struct.Struct("<QQ")         # bytes of header and of payload
# Plug-ins of pydicom, of which the first that reads the pixels decides. GDCM is last, because damaged files crash it.
_PLUGINS = ("pillow", "pyjpegls", "pylibjpeg", "pydicom", "gdcm")
_JPEG_2000_PLUGINS = ("pylibjpeg", "pillow", "gdcm")       # Pillow reads only a part of JPEG 2000


def send(connection: socket.socket, header: dict, payload: bytes | memoryview = b"") -> None:
  """Sends a message."""
  encoded = json.dumps(header).encode()
  connection.sendall(_LENGTH.pack(len(encoded), len(payload)) + encoded)
  connection.sendall(payload)


def receive(connection: socket.socket, max_bytes: int) -> tuple[dict, bytearray]:
  """Receives a message; raises EOFError if the other side is gone, ValueError for more than `max_bytes` of payload."""
  header_size, size = _LENGTH.unpack(_receive_bytes(connection, _LENGTH.size))
  if header_size > 2 ** 20 or size > max_bytes:
    raise ValueError(f"a message of {size} bytes")
  return json.loads(_receive_bytes(connection, header_size)), _receive_bytes(connection, size)


def _receive_bytes(connection: socket.socket, size: int) -> bytearray:
  received = bytearray(size)
  view = memoryview(received)
  while view:
    count = connection.recv_into(view)
    if not count:
      raise EOFError
    view = view[count:]
  return received


def main() -> None:
  """Decodes until the other side closes the socket."""
  import pydicom.pixels.decoders.base  # noqa: F401  (before the first job limits memory and processor time)
  signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C is handled by the parent process
  resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))   # a dump shows patients
  connection = socket.socket(fileno=0)
  while True:
    try:
      job, data = receive(connection, 2 ** 62)
    except EOFError:
      return
    _limit_resources(job["cpu_seconds"], job["memory"] + len(data))
    try:
      pixels = np.ascontiguousarray(_DECODERS[job["kind"]](job, bytes(data)))
      answer = {"shape": pixels.shape, "dtype": pixels.dtype.str}
    except MemoryError:
      pixels, answer = None, {"error": "memory"}
    except Exception:                               # whatever a decoder raises for a damaged file
      pixels, answer = None, {"error": "damaged"}
    _limit_memory(None)                             # the next job may be larger
    send(connection, answer, b"" if pixels is None else pixels.reshape(-1).view(np.uint8).data)


def _limit_resources(cpu_seconds: int, memory: int) -> None:
  """Lets the next job have so much processor time and memory [bytes]; the kernel ends a process that takes more.

  Processor time, because the result must not depend on what else the machine does.
  """
  usage = resource.getrusage(resource.RUSAGE_SELF)
  used = math.ceil(usage.ru_utime + usage.ru_stime)
  resource.setrlimit(resource.RLIMIT_CPU, (used + cpu_seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
  _limit_memory(memory)


def _limit_memory(memory: int | None) -> None:
  """Lets this process take so much more memory, in bytes; None: as much as it wants."""
  hard = resource.getrlimit(resource.RLIMIT_AS)[1]
  try:
    with open("/proc/self/statm") as file:
      occupied = int(file.read().split()[0]) * resource.getpagesize()
  except OSError:                                   # not Linux: memory isn't limited
    return
  resource.setrlimit(resource.RLIMIT_AS, (hard if memory is None else occupied + memory, hard))


def _decode_dicom(job: dict, data: bytes) -> np.ndarray:
  """Decompresses the pixel data of a DICOM file; `options` of the job are those of pydicom's decoder."""
  from pydicom.pixels.decoders.base import get_decoder  # not at the top: the parent process imports this module, too
  from pydicom.uid import JPEG2000TransferSyntaxes
  decoder = get_decoder(job["transfer_syntax"])
  failure = ValueError("no plug-in")
  plugins = _JPEG_2000_PLUGINS if job["transfer_syntax"] in JPEG2000TransferSyntaxes else _PLUGINS
  for plugin in plugins:
    if plugin not in decoder.available_plugins:
      continue
    try:
      return decoder.as_array(data, decoding_plugin=plugin, **job["options"])[0]
    except MemoryError:
      raise
    except Exception as error:
      failure = error
  raise failure


def _decode_jpeg_2000(job: dict, data: bytes) -> np.ndarray:
  """Decodes a JPEG 2000 file to uint8 or uint16 [height, width], or uint8 [height, width, 3]."""
  with PIL.Image.open(io.BytesIO(data), formats=("JPEG2000",)) as image:
    if image.width * image.height > job["max_pixels"]:
      raise MemoryError
    image.load()
    return np.asarray(image if image.mode == "L" or image.mode.startswith("I") else image.convert("RGB"))


def _decode_deep_color(job: dict, data: bytes) -> np.ndarray:
  """Decodes a file to the depth that it has: [height, width, 3], red first; an alpha channel is left out."""
  del job                                           # unused
  import cv2
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None:
    raise ValueError("OpenCV can't decode it")
  return pixels[..., :3][..., ::-1] if pixels.ndim == 3 and pixels.shape[2] >= 3 else pixels


_DECODERS = {"dicom": _decode_dicom, "jpeg_2000": _decode_jpeg_2000, "deep_color": _decode_deep_color}
