"""Runs decoders of other people's bytes in a process of their own, where they can't take this one along.

JPEG, JPEG-LS and JPEG 2000 decoders are written in C and C++. Some of them end the process when a file is damaged
(GDCM by an exception that nobody catches), others never end (pydicom in an empty box of JPEG 2000) or take all memory.
Each thread that needs them has one process that decodes one image after another; it is started for the first image and
replaced when it ends. Its processor time and its memory are bounded in proportion to the size of the image.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any
import weakref

import numpy as np

from input_pipeline.image_files import decoder_worker

# Processor time and memory for an image without pixels, and for each million samples: at least five times what the
# slowest decoder takes on a processor of 2020.
CPU_SECONDS, CPU_SECONDS_PER_MEGASAMPLE = 5, 2
_MEMORY, _MEMORY_PER_SAMPLE = 2 ** 28, 48           # bytes
_WALL_SECONDS_PER_CPU_SECOND = 20                   # the process may have to wait for a processor
_MAX_BYTES_PER_SAMPLE = 8
_threads = threading.local()                        # .process: the process of this thread


class DecoderError(ValueError):
  """An image can't be decoded; the message is one line and quotes nothing of the file."""


class _DecoderProcess:
  """A running process and the socket to it."""

  def __init__(self):
    self.connection, other = socket.socketpair()
    code = f"import sys; sys.path[:] = {sys.path!r}; from {decoder_worker.__name__} import main; main()"
    # One thread, so that memory and processor time are those of the job. Nothing that a decoder prints is shown: it may
    # quote the file. A session of its own: signals to the parent's group must not look like a damaged file.
    self.process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=other.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    other.close()
    self.owner = os.getpid()
    weakref.finalize(self, _end, self.process, self.connection, self.owner)


def decode(kind: str, data: bytes, num_samples: int, **job: Any) -> np.ndarray:
  """Decodes an image in another process.

  Args:
    kind: dicom | jpeg_2000 | deep_color.
    data: the encoded bytes.
    num_samples: pixels times channels of the image according to its header.
    **job: further fields for the decoder in `decoder_worker.py`.

  Returns:
    The pixels [height, width] or [height, width, channels], writeable.

  Raises:
    DecoderError: the bytes are damaged, or decoding takes too long or too much memory.
  """
  megasamples = num_samples / 1e6
  cpu_seconds = round(CPU_SECONDS + CPU_SECONDS_PER_MEGASAMPLE * megasamples)
  worker = getattr(_threads, "process", None)
  if worker is None or worker.owner != os.getpid() or worker.process.poll() is not None:
    worker = _threads.process = _start()
  try:
    worker.connection.settimeout(cpu_seconds * _WALL_SECONDS_PER_CPU_SECOND)
    decoder_worker.send(worker.connection, {
        "kind": kind, "cpu_seconds": cpu_seconds, "memory": _MEMORY + _MEMORY_PER_SAMPLE * num_samples, **job}, data)
    answer, pixels = decoder_worker.receive(worker.connection, _MAX_BYTES_PER_SAMPLE * num_samples)
    if "error" not in answer:
      return np.frombuffer(pixels, np.dtype(answer["dtype"])).reshape(answer["shape"])
  except (EOFError, OSError, ValueError) as error:
    _threads.process = None
    raise DecoderError(_describe_end(worker, error, cpu_seconds)) from error
  raise DecoderError("decoding takes more memory than an image of this size needs" if answer["error"] == "memory" else
                     "damaged or truncated")


def _start() -> _DecoderProcess:
  try:
    return _DecoderProcess()
  except OSError as error:
    raise DecoderError(f"the process that decodes can't be started ({error.strerror})") from error


def _describe_end(worker: _DecoderProcess, error: Exception, cpu_seconds: int) -> str:
  """Ends a process that didn't answer, and returns the reason."""
  if isinstance(error, TimeoutError):
    worker.process.kill()
  worker.connection.close()
  try:
    status = worker.process.wait(10)
  except subprocess.TimeoutExpired:
    worker.process.kill()
    status = worker.process.wait()
  if isinstance(error, TimeoutError) or status == -signal.SIGXCPU:
    return f"decoding takes more than {cpu_seconds} s, as if the file were damaged"
  if isinstance(error, ValueError):
    return "damaged: it decodes to more pixels than its header says"
  name = signal.Signals(-status).name if status < 0 else f"status {status}"
  return f"the decoder ended early ({name}): damaged, or memory ran out"


def _end(process: subprocess.Popen, connection: socket.socket, owner: int) -> None:
  """Ends a process that is no longer needed, but not that of the parent after a fork."""
  connection.close()
  if os.getpid() == owner:
    process.kill()
    process.wait()
