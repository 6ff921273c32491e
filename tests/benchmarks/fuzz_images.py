"""Reads many randomly damaged images: python tests/benchmarks/fuzz_images.py dicom|image COUNT [FIRST] [FOLDER].

Each must be read or refused by name. Whatever takes longer than a second, takes memory, or raises anything else is
written to FOLDER. The last file is in FOLDER/current if the process itself dies.
"""

import collections
import faulthandler
import pathlib
import resource
import sys
import time
import traceback

import numpy as np

from input_pipeline.dicom import RENDERINGS
from input_pipeline.image_files import decoder_process
from tests.input_pipeline.image_files.test_damaged_files import read
from tests.testing.foreign import mutated_files


def main() -> None:
  kind, count = sys.argv[1], int(sys.argv[2])
  first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
  folder = pathlib.Path(sys.argv[4] if len(sys.argv) > 4 else "fuzz")
  folder.mkdir(parents=True, exist_ok=True)
  decoder_process.CPU_SECONDS = 1
  files = mutated_files.make_dicom_files() if kind == "dicom" else mutated_files.make_image_files()
  outcomes, slow = collections.Counter(), 0
  begin, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for number in range(first, first + count):
    name = sorted(files)[number % len(files)]
    data = mutated_files.mutate(files[name], np.random.default_rng(number))
    path = folder / "current"
    path.write_bytes(data)
    faulthandler.dump_traceback_later(60, exit=True)
    start, problem = time.process_time(), ""
    try:
      outcomes[name, read(path, RENDERINGS[number % 2])] += 1
    except BaseException:
      problem = traceback.format_exc()
    faulthandler.cancel_dump_traceback_later()
    seconds = time.process_time() - start
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if now > memory + 100_000:
      problem += f"memory {memory} -> {now} KB\n"
    memory = max(memory, now)
    if seconds > 1:
      problem += f"{seconds:.1f} s\n"
    if problem:
      slow += 1
      (folder / f"{kind}-{number}").write_bytes(data)
      print(kind, number, name, problem, flush=True)
  for name in sorted(files):
    print(f"{name:20} read {outcomes[name, True]:6} refused {outcomes[name, False]:6}")
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  print(f"{count} files, {slow} problems, {time.monotonic() - begin:.0f} s, {memory / 1024:.0f} MB here, "
        f"{children.ru_maxrss / 1024:.0f} MB in the largest process that decodes")


if __name__ == "__main__":
  main()
