"""One ArrayRecord file: every record in any order, by several threads, and after an error."""

from concurrent import futures

from array_record.python import array_record_module
import numpy as np
import pytest

from input_pipeline.record_file import RecordFile

RECORDS = [np.random.default_rng(number).bytes(5000) for number in range(40)]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "a.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in RECORDS:
    writer.write(record)
  writer.close()
  return path


def test_threads_get_the_records_that_they_ask_for(path):
  file, positions = RecordFile(path, len(RECORDS), path.parent), np.random.default_rng(0).integers(0, 40, 2000).tolist()
  with futures.ThreadPoolExecutor(8) as pool:
    records = list(pool.map(file.read, positions))
  assert records == [RECORDS[position] for position in positions]


def test_records_beside_a_corrupt_one_can_be_read_after_the_error(path):
  data = bytearray(path.read_bytes())
  data[data.find(RECORDS[5]) + 100] ^= 1
  path.write_bytes(data)
  file = RecordFile(path, len(RECORDS), path.parent)
  for _ in range(2):
    with pytest.raises(RuntimeError, match="Corrupted Riegeli/records file"):
      file.read(5)
    assert [file.read(position) for position in (6, 4, 39)] == [RECORDS[6], RECORDS[4], RECORDS[39]]


def test_a_file_that_disappears_after_an_error_is_reported_and_found_again(path):
  file = RecordFile(path, len(RECORDS), path.parent)
  data, moved = bytearray(path.read_bytes()), path.with_name("moved")
  data[data.find(RECORDS[5]) + 100] ^= 1
  path.write_bytes(data)
  with pytest.raises(RuntimeError, match="Corrupted"):
    file.read(5)
  path.rename(moved)
  with pytest.raises(RuntimeError, match="can't be opened any more"):
    file.read(6)
  moved.rename(path)
  assert file.read(6) == RECORDS[6]
