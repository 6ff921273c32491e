"""R2GenCMN as a special case of our model, against the original's outputs on the same weights.

The parity files hold outputs of its PyTorch code (Chen et al., ACL 2021) on random weights. `small` holds the weights
too; those of `full`, at published size, are a function of their names.
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
from mcsam_jax.decoding.greedy import greedy_search
from mcsam_jax.decoding.loop import CacheResizer
from mcsam_jax.models.decode_cache import cache_is_full, grow_cache, init_cache
from mcsam_jax.models.initialize import make_model
from mcsam_jax.pretrained import r2gencmn
from mcsam_jax.pretrained.conversion import convert

PARITY = pathlib.Path(__file__).parents[2] / "parity"
TOLERANCE = {"small": 1e-4, "full": 1e-3}           # for log-probabilities


def draw_by_name(name, shape):
  """Returns the tensor that the parity files' rule gives an R2GenCMN name."""
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


class R2GenCMN:
  """The model of a parity file, and the outputs of the original."""

  def __init__(self, size):
    sizes = json.loads((PARITY / f"r2gencmn_{size}.json").read_text())
    self.outputs = np.load(PARITY / f"r2gencmn_{size}.npz")
    if size == "small":
      tensors = {name.removeprefix("w/"): self.outputs[name] for name in self.outputs.files if name.startswith("w/")}
    else:
      tensors = {name: draw_by_name(name, shape) for name, shape in sizes["keys"].items()}
    fields = {"encoder.frozen": True, "model.width": sizes["d_model"], "model.feedforward_width": sizes["d_ff"],
              "model.num_heads": sizes["num_heads"], "memory.num_heads": sizes["num_heads"],
              "model.encoder_layers": sizes["num_layers"], "model.decoder_layers": sizes["num_layers"],
              "memory.num_slots": sizes["cmm_size"], "memory.slot_width": sizes["cmm_dim"],
              "memory.top_k": sizes["topk"], "tokenizer.max_length": sizes["max_seq_length"]}
    self.config = configs.load_config("r2gencmn", [f"--config.{name}={value}" for name, value in fields.items()])
    self.length, self.size = sizes["max_seq_length"], size
    patches = self.outputs["patch_features"]
    self.studies = len(patches)
    views = patches.shape[1] // 49
    self.model = make_model(self.config, sizes["vocab_rows"], 7)
    self.images = jnp.asarray(patches.reshape(self.studies, views, 49, -1))
    self.views = jnp.ones((self.studies, views), bool), jnp.zeros((self.studies, views), jnp.int32)
    tokens, mask = jnp.zeros((1, self.length + 1), jnp.int32), jnp.ones((1, self.length), bool)
    expected = jax.eval_shape(lambda: self.model.init(
        jax.random.key(0), self.images[:1], *(view[:1] for view in self.views), tokens, mask, train=False))
    shapes = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(expected, sep="/").items()}
    self.variables, self.report = convert(tensors, "r2gencmn", shapes, r2gencmn.MAPPING)

  def log_probs(self, tokens):
    """Returns [B, T, vocabulary] after each of tokens [B, T + 1] but the last."""
    @jax.jit
    def forward(variables, images, tokens):
      mask = jnp.ones(tokens[:, 1:].shape, bool)
      return jax.nn.log_softmax(self.model.apply(variables, images, *self.views, tokens, mask, train=False).logits)
    return np.asarray(forward(self.variables, self.images, tokens))

  def search(self, search, num_beams, **options):
    @jax.jit
    def run(variables, images):
      constants = self.model.apply(variables, method="make_decode_constants")
      encoded = self.model.apply(variables, images, *self.views, constants.memory, False, method="encode_images")
      context = self.model.apply(variables, encoded, method="prefill")
      decode_step = lambda tokens, cache: self.model.apply(variables, tokens, cache, context, constants,
                                                           method="decode_step")
      grow = lambda cache, num_slots: grow_cache(cache, context.study_kv, num_slots)
      return search(decode_step, init_cache(context.study_kv, num_beams), batch_size=self.studies,
                    max_length=self.length, bos_id=0, eos_id=0, pad_id=0,
                    cache_resizer=CacheResizer(grow, cache_is_full), **options)
    return jax.device_get(run(self.variables, self.images))


@pytest.fixture(scope="module", params=["small", "full"])
def original(request):
  return R2GenCMN(request.param)


def test_every_tensor_is_converted(original):
  assert original.report.is_complete and original.report.converted
  assert all(name.startswith("cmn.linears.") for name in original.report.ignored)


def test_log_probabilities(original):
  targets = original.outputs["targets"]
  log_probs = original.log_probs(targets)
  visible = np.pad(targets[:, 1:-1] > 0, ((0, 0), (1, 0)), constant_values=True)   # the original masks a 0 after bos
  difference = np.abs(log_probs - original.outputs["log_probs"]).max(-1)
  assert visible.sum() > original.studies * 3
  assert difference[visible].max() <= TOLERANCE[original.size]


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
