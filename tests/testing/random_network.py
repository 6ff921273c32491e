"""A small network with random weights, and batches of random studies for it."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from input_pipeline.batch import make_batch
from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.models.initialize import make_model
from mcsam_jax.training.train_state import init_train_state
from tests.testing.tiny import DEEPER_NETWORK, make_config

FIELDS = DEEPER_NETWORK | {"encoder.frozen": True, "tokenizer.max_length": 12, "decode.beam_size": 3,
                           "decode.num_samples": 6}
NUM_VIEWS, GRID, CHANNELS = 2, 3, 16
NUM_PATCHES = GRID ** 2          # per view
NUM_STUDIES = 300
REPORTS = ("the heart is normal .", "no effusion or pneumothorax .", "lungs are clear . heart normal .",
           "small effusion .")


class RandomNetwork:
  """A network with random weights whose reports differ between studies.

  Attributes:
    config, tokenizer, model, variables: as of a trained model.
    batch_size: B.
  """

  def __init__(self, batch_size: int, **fields):
    """Initializes the network; `fields` are config fields, spelled `section__field`."""
    self.config = make_config(FIELDS, {"decode.batch_size": batch_size}, **fields)
    self.tokenizer = WordTokenizer.train(list(REPORTS) * 4, "iu_xray", 1, False)
    self.model = make_model(self.config, self.tokenizer.vocab_size, GRID)
    self.batch_size = batch_size
    init = jax.jit(lambda batch: init_train_state(self.model, self.config, batch).variables)
    self.variables = init(next(self.make_batches(1)))
    self.variables["params"]["decoder"]["logits"]["kernel"] *= 8                # so that reports differ

  def make_batches(self, num_studies: int) -> Iterator[dict]:
    """Yields the batches of the first studies as `eval_batches` does, the last one padded."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(NUM_STUDIES, NUM_VIEWS, NUM_PATCHES, CHANNELS)).astype(np.float32)
    tokens = np.stack([self.tokenizer.encode_for_training(REPORTS[i % 4], self.config.tokenizer.max_length)
                       for i in range(NUM_STUDIES)])
    for start in range(0, num_studies, self.batch_size):
      index = np.arange(start, start + self.batch_size)
      record = np.minimum(index, num_studies - 1)
      views = np.stack([np.zeros(len(record), int), np.where(record % 3 > 0, 1, -1)], 1)    # some have no lateral view
      yield make_batch({"features": features[record]}, views, tokens[record], record=record, valid=index < num_studies)

  def make_generator(self, search: str) -> ReportGenerator:
    """Returns the generator of the network's reports."""
    return ReportGenerator([self.model], self.config, self.tokenizer, make_mesh(self.config), search, REPORTS)

  def generate(self, search: str, num_studies: int) -> Sequence[GeneratedReport]:
    """Returns the reports of the first studies."""
    return self.make_generator(search)([self.variables], self.make_batches(num_studies))
