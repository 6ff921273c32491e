"""Decoders that crash, hang or take all memory end their own process alone, and the next image gets a new one."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from input_pipeline import dicom
from input_pipeline.image_files import decoder_process
from tests.testing.foreign.mutated_files import encode, FILM, make_dicom_files

CASES = pathlib.Path(__file__).parents[2] / "cases" / "mutated"
JPEG_2000 = encode(FILM, "JPEG2000")


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
  monkeypatch.setattr(decoder_process, "CPU_SECONDS", 1)


def decode(**job) -> np.ndarray:
  return decoder_process.decode("jpeg_2000", JPEG_2000, FILM.size, **{"max_pixels": 10 ** 6} | job)


def current_process() -> subprocess.Popen:
  return decoder_process._threads.process.process


def test_one_process_decodes_one_image_after_another():
  assert np.array_equal(decode(), FILM)
  process = current_process()
  assert np.array_equal(decode(), FILM) and current_process() is process
  with pytest.raises(decoder_process.DecoderError, match="damaged"):
    decoder_process.decode("jpeg_2000", JPEG_2000[:100], FILM.size, max_pixels=10 ** 6)
  assert np.array_equal(decode(), FILM) and current_process() is process


@pytest.mark.parametrize("name", ["j2k_loop", "5ec35cdd", "gdcm_abort", "gdcm_segv", "gdcm_abort_j2k", "abort_dicom_1"])
def test_files_that_end_or_hang_a_decoder_are_refused(name):
  start = time.monotonic()
  with pytest.raises(dicom.DicomError) as error:
    dicom.render((CASES / f"{name}.dcm").read_bytes(), "voi")
  assert str(error.value) and time.monotonic() - start < 30
  assert dicom.render(make_dicom_files()["jpeg"], "voi").std() > 10            # the next file is read


def test_a_process_that_is_killed_is_replaced():
  decode()
  killed = current_process()
  os.kill(killed.pid, signal.SIGKILL)
  killed.wait()
  assert np.array_equal(decode(), FILM) and current_process() is not killed


def test_memory_is_bounded(monkeypatch):
  if not os.path.exists("/proc/self/statm"):
    pytest.skip("memory is limited on Linux only")
  # A new process: one that has decoded before may have memory left over.
  monkeypatch.setattr(decoder_process._threads, "process", None, raising=False)
  monkeypatch.setattr(decoder_process, "_MEMORY", 0)
  monkeypatch.setattr(decoder_process, "_MEMORY_PER_SAMPLE", 0)
  with pytest.raises(decoder_process.DecoderError, match="memory"):
    decoder_process.decode("jpeg_2000", encode(np.tile(FILM, (60, 60)), "JPEG2000"), FILM.size, max_pixels=10 ** 9)


def test_a_small_image_does_not_limit_the_next_one(monkeypatch):
  with monkeypatch.context() as small:
    small.setattr(decoder_process, "_MEMORY", 2 ** 24)
    assert np.array_equal(decode(), FILM)
  process = current_process()
  large = JPEG_2000 + bytes(2 ** 26)                # what follows the image is not looked at
  assert np.array_equal(decoder_process.decode("jpeg_2000", large, FILM.size, max_pixels=10 ** 6), FILM)
  assert current_process() is process


def test_more_pixels_than_announced_are_not_taken():
  with pytest.raises(decoder_process.DecoderError, match="more pixels"):
    decoder_process.decode("jpeg_2000", JPEG_2000, 10, max_pixels=10 ** 6)
  assert np.array_equal(decode(), FILM)


def test_each_thread_has_its_own_process_which_ends_with_it():
  processes, barrier = [], threading.Barrier(2)

  def work(_):
    pixels = decode()
    processes.append(current_process())
    barrier.wait()
    return pixels

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    assert all(np.array_equal(pixels, FILM) for pixels in pool.map(work, range(2)))
  assert len({process.pid for process in processes}) == 2
  deadline = time.monotonic() + 20
  while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
    time.sleep(.05)
  assert all(process.poll() is not None for process in processes)


def test_the_process_ends_with_its_parent_and_loads_nothing_heavy(tmp_path):
  """Even if the parent is killed; a script without `if __name__ == "__main__"` isn't run again."""
  (tmp_path / "film.jp2").write_bytes(JPEG_2000)
  script = tmp_path / "script.py"
  script.write_text(
      "import pathlib, sys, time\n"
      "from input_pipeline.image_files import decoder_process\n"
      f"data = pathlib.Path({str(tmp_path / 'film.jp2')!r}).read_bytes()\n"
      f"decoder_process.decode('jpeg_2000', data, {FILM.size}, max_pixels=10 ** 6)\n"
      "print(decoder_process._threads.process.process.pid, flush=True)\n"
      "time.sleep(60)\n")
  with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True,
                        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}) as parent:
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    mapped = pathlib.Path(f"/proc/{pid}/maps")
    if mapped.exists():
      assert "jaxlib" not in mapped.read_text() and "tensorflow" not in mapped.read_text()
    parent.kill()
  deadline = time.monotonic() + 20
  while is_running(pid) and time.monotonic() < deadline:
    time.sleep(.05)
  assert not is_running(pid)


def is_running(pid: int) -> bool:
  """Returns whether a process runs; one that has ended but that nobody has waited for doesn't."""
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


def test_without_the_extra_the_decoders_of_pillow_and_pydicom_are_used(tmp_path):
  """Packages that can't be imported stand before those of the extra."""
  for name in ("gdcm", "pylibjpeg", "openjpeg"):
    (tmp_path / f"{name}.py").write_text("raise ImportError('hidden')")
  files = make_dicom_files()
  for name, data in files.items():
    (tmp_path / f"{name}.dcm").write_bytes(data)
  script = ("import pathlib, sys\n"
            "from input_pipeline import dicom\n"
            "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.dcm')):\n"
            "  try:\n    print(path.stem, dicom.render(path.read_bytes(), 'voi').sum(), sep=':')\n"
            "  except dicom.DicomError as error:\n    print(path.stem, error, sep=':')\n")
  result = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
  lines = dict(line.split(":", 1) for line in result.stdout.splitlines())
  for name, data in files.items():
    if name in ("jpeg-ls", "jpeg lossless"):
      assert "pip install -e '.[dicom]'" in lines[name]
    else:
      assert lines[name] == str(dicom.render(data, "voi").sum())
