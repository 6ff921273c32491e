"""Attribution maps agree with the generated reports, and absent views have no effect on them."""

import numpy as np

from mcsam_jax.explain.attention import make_attribution_fn
from tests.testing.random_network import NUM_PATCHES, RandomNetwork


def test_attribution_maps_add_up_to_the_report():
  network = RandomNetwork(8)
  reports = network.generate("beam", 8)
  batch = next(network.make_batches(8))
  length, tokenizer = network.config.tokenizer.max_length, network.tokenizer
  ids = np.stack([report.ids for report in reports])
  attribute = make_attribution_fn(network.model, network.config, tokenizer.eos_id)
  maps = attribute(network.variables, batch, ids)
  np.testing.assert_allclose(maps.log_probs.sum(-1), [report.log_prob for report in reports], atol=1e-4)
  num_tokens = (ids != tokenizer.pad_id).sum(-1)
  np.testing.assert_allclose(maps.patches.sum(-1), np.arange(length) < num_tokens[:, None], atol=1e-5)
  absent = ~np.repeat(batch["view_mask"], NUM_PATCHES, axis=1)
  assert absent.any() and np.all(np.moveaxis(np.asarray(maps.patches), 1, 2)[absent] == 0)
  np.testing.assert_allclose(np.asarray(maps.slots).sum(-1), 1, rtol=1e-5)
  with_nan = batch | {"features": np.where(batch["view_mask"][..., None, None], batch["features"], np.nan)}
  again = attribute(network.variables, with_nan, ids)
  np.testing.assert_allclose(np.asarray(again.slots), np.asarray(maps.slots), rtol=1e-5)
