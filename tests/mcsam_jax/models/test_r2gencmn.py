"""R2GenCMN as a special case of our model, against the original's outputs on the same weights."""

import numpy as np
import pytest

from mcsam_jax.decoding.beam_search import beam_search
from mcsam_jax.decoding.greedy import greedy_search
from tests.testing.r2gencmn import R2GenCMN, TOLERANCE


@pytest.fixture(scope="module", params=["small", "full"])
def original(request):
  return R2GenCMN(request.param)


def test_every_tensor_is_converted(original):
  assert original.report.is_complete and original.report.converted
  assert all(name.startswith("cmn.linears.") for name in original.report.ignored)


def test_log_probabilities(original):
  assert original.log_prob_error() <= TOLERANCE[original.size]


def test_greedy(original):
  """Every token is the most likely one after those before it, by the log-probabilities that agree with the original's.

  `greedy` of the files is no reference: already its first tokens are not the most likely by `log_probs` of the same
  file. The original samples at random when it is called with beam size 1 and its default sample method.
  """
  result = original.search(greedy_search, 1)
  np.testing.assert_array_equal(result.ids[:, 0], original.outputs["log_probs"][:, 0].argmax(-1))
  log_probs = original.log_probs(np.pad(result.ids, ((0, 0), (1, 0))))                              # bos first
  written = np.cumsum(result.ids == 0, axis=1) - (result.ids == 0) == 0                             # up to eos
  chosen = np.take_along_axis(log_probs, result.ids[..., None], -1)[..., 0]
  assert (log_probs.max(-1) - chosen)[written].max() <= TOLERANCE[original.size]
  np.testing.assert_allclose(result.log_probs, np.where(written, chosen, 0).sum(-1), atol=1e-3)
  assert (original.outputs["greedy"][:, 0] != original.outputs["log_probs"][:, 0].argmax(-1)).any()


def test_beam_3(original):
  result = original.search(beam_search, 3, beam_size=3, finished_beams="in_place")
  np.testing.assert_array_equal(result.ids[:, 0], original.outputs["beam3"])
  np.testing.assert_allclose(result.log_probs[:, 0], original.outputs["beam3_logprob"], atol=1e-3)
  assert (original.outputs["beam3_margin"] > 0).all()
