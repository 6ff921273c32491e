"""Reports of a small random network do not depend on the batch, and come from one compiled program."""

from typing import Any

import pytest

from tests.testing.random_network import RandomNetwork


def count_compilations(jitted: Any) -> int:
  return jitted._cache_size()


@pytest.mark.parametrize("search", ["beam", "mbr"])
def test_reports_do_not_depend_on_the_other_studies(search):
  network = RandomNetwork(8, decode__retrieval_weight=0.5)
  generate = network.make_generator(search)
  reports = generate([network.variables], network.make_batches(300))
  assert [report.record for report in reports] == list(range(300))
  assert len({report.text for report in reports}) > 20
  for num_studies in (1, 7, 8, 9):
    texts = [report.text for report in generate([network.variables], network.make_batches(num_studies))]
    assert texts == [report.text for report in reports[:num_studies]]
  assert count_compilations(generate._search_fn) == count_compilations(generate._make_constants) == 1
  in_batches_of_3 = RandomNetwork(3, decode__retrieval_weight=0.5).generate(search, 9)
  assert [report.text for report in in_batches_of_3] == [report.text for report in reports[:9]]
