"""R2GenCMN as a point of our model space, against the original's outputs on the same weights.

The files are outputs of its PyTorch code (Chen et al., ACL 2021) on random weights: `small` holds them, those of
`full`, at published size, are a function of their names.
"""

import json
import pathlib
import zlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax import config as configs
from mcsam_jax.decoding.beam_search import beam_search
from mcsam_jax.decoding.greedy import CacheResizer, greedy_search
from mcsam_jax.models.initialize import make_model
from mcsam_jax.pretrained import r2gencmn
from mcsam_jax.pretrained.import_weights import convert

PARITY = pathlib.Path(__file__).parents[2] / "parity"
TOLERANCE = {"small": 1e-4, "full": 1e-3}           # of log-probabilities


def drawn_by_name(name, shape):
  """The tensor that the parity files' rule gives an R2GenCMN name."""
  source = name.replace("cmn.", "model.cmn.", 1) if name.startswith("cmn.") else name
  rs = np.random.RandomState(zlib.crc32(source.encode()) & 0xffffffff)
  noise, leaf = rs.standard_normal(shape), name.rpartition(".")[2]
  if leaf == "memory_matrix":
    return noise
  if len(shape) >= 2:
    return noise / np.sqrt(np.prod(shape[1:])) * (6 if name == "logit.weight" else 1)
  value = 1 + 0.1 * noise if leaf in ("weight", "a_2") else 0.1 * noise
  if name == "logit.bias":
    value[0] += 12.5
  return value


class Original:
  """The model of a parity file, and what the original said."""

  def __init__(self, size):
    facts = json.loads((PARITY / f"r2gencmn_{size}.json").read_text())
    self.said = np.load(PARITY / f"r2gencmn_{size}.npz")
    if size == "small":
      tensors = {name.removeprefix("w/"): self.said[name] for name in self.said.files if name.startswith("w/")}
    else:
      tensors = {name: drawn_by_name(name, shape) for name, shape in facts["keys"].items()}
    fields = {"encoder.frozen": True, "model.width": facts["d_model"], "model.feedforward_width": facts["d_ff"],
              "model.num_heads": facts["num_heads"], "memory.num_heads": facts["num_heads"],
              "model.encoder_layers": facts["num_layers"], "model.decoder_layers": facts["num_layers"],
              "memory.num_slots": facts["cmm_size"], "memory.slot_width": facts["cmm_dim"],
              "memory.top_k": facts["topk"], "tokenizer.max_length": facts["max_seq_length"]}
    self.config = configs.load_config("r2gencmn", [f"--config.{name}={value}" for name, value in fields.items()])
    self.length, self.size = facts["max_seq_length"], size
    patches = self.said["patch_features"]
    self.studies = len(patches)
    views = patches.shape[1] // 49
    self.model = make_model(self.config, facts["vocab_rows"], 7)
    self.images = jnp.asarray(patches.reshape(self.studies, views, 49, -1))
    self.views = jnp.ones((self.studies, views), bool), jnp.zeros((self.studies, views), jnp.int32)
    tokens, mask = jnp.zeros((1, self.length + 1), jnp.int32), jnp.ones((1, self.length), bool)
    expected = jax.eval_shape(lambda: self.model.init(
        jax.random.key(0), self.images[:1], *(view[:1] for view in self.views), tokens, mask, train=False))
    shapes = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(expected, sep="/").items()}
    self.variables, self.report = convert(tensors, "r2gencmn", shapes, r2gencmn)

  def log_probs(self, tokens):
    """Returns [B, T, vocabulary] after each of tokens [B, T + 1] but the last."""
    @jax.jit
    def read(variables, images, tokens):
      mask = jnp.ones(tokens[:, 1:].shape, bool)
      return jax.nn.log_softmax(self.model.apply(variables, images, *self.views, tokens, mask, train=False).logits)
    return np.asarray(read(self.variables, self.images, tokens))

  def search(self, search, num_beams, **options):
    @jax.jit
    def run(variables, images):
      prepared = self.model.apply(variables, method="prepare")
      begun = self.model.apply(variables, images, *self.views, prepared, method="begin")
      cache = self.model.apply(variables, begun, num_beams, method="init_cache")
      return search(lambda words, cache: self.model.apply(variables, words, cache, begun, prepared, method="step"), cache,
                    batch_size=self.studies, max_length=self.length, bos_id=0, eos_id=0, pad_id=0,
                    room=CacheResizer(lambda cache, nodes: self.model.apply(variables, cache, nodes, method="grow"),
                              lambda cache: self.model.apply(variables, cache, method="full")), **options)
    return jax.device_get(run(self.variables, self.images))


@pytest.fixture(scope="module", params=["small", "full"])
def original(request):
  return Original(request.param)


def test_every_tensor_has_its_place(original):
  assert original.report.fits and original.report.used
  assert all(name.startswith("cmn.linears.") for name in original.report.unused)


def test_log_probabilities(original):
  targets = original.said["targets"]
  found = original.log_probs(targets)
  read = np.pad(targets[:, 1:-1] > 0, ((0, 0), (1, 0)), constant_values=True)   # the original doesn't see a 0 behind bos
  difference = np.abs(found - original.said["log_probs"]).max(-1)
  assert read.sum() > original.studies * 3
  assert difference[read].max() <= TOLERANCE[original.size]


def test_greedy(original):
  """Every token is the likeliest after those before it, by the log-probabilities that agree with the original's.

  `greedy` of the files can't be held against it: already its first tokens are not the likeliest by `log_probs` of the
  same file. The original draws at random when it is called with beam size 1 and its default sample method.
  """
  result = original.search(greedy_search, 1)
  np.testing.assert_array_equal(result.ids[:, 0], original.said["log_probs"][:, 0].argmax(-1))
  log_probs = original.log_probs(np.pad(result.ids, ((0, 0), (1, 0))))                              # bos first
  written = np.cumsum(result.ids == 0, axis=1) - (result.ids == 0) == 0                             # up to eos
  chosen = np.take_along_axis(log_probs, result.ids[..., None], -1)[..., 0]
  assert (log_probs.max(-1) - chosen)[written].max() <= TOLERANCE[original.size]
  np.testing.assert_allclose(result.log_probs, np.where(written, chosen, 0).sum(-1), atol=1e-3)
  assert (original.said["greedy"][:, 0] != original.said["log_probs"][:, 0].argmax(-1)).any()


def test_beam_3(original):
  result = original.search(beam_search, 3, beam_size=3, finished_beams="in_place")
  np.testing.assert_array_equal(result.ids[:, 0], original.said["beam3"])
  np.testing.assert_allclose(result.log_probs[:, 0], original.said["beam3_logprob"], atol=1e-3)
  assert (original.said["beam3_margin"] > 0).all()
