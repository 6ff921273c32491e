"""R2GenCMN as a special case of our model, with the weights of a parity file and the outputs of the original.

The files hold outputs of its PyTorch code (Chen et al., ACL 2021) on random weights. `small` holds the weights too;
those of `full`, at published size, are a function of their names.
"""

import json
import zlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mcsam_jax.config import load_config
from mcsam_jax.decoding.loop import CacheResizer
from mcsam_jax.models.decode_cache import cache_is_full, grow_cache, init_cache
from mcsam_jax.models.initialize import make_model
from mcsam_jax.pretrained import r2gencmn
from mcsam_jax.pretrained.conversion import convert
from tests.testing.parity import PARITY

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
    self.config = load_config("r2gencmn", [f"--config.{name}={value}" for name, value in fields.items()])
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

  def log_prob_error(self) -> float:
    """Returns the largest difference from the original's log-probabilities of its targets."""
    targets = self.outputs["targets"]
    visible = np.pad(targets[:, 1:-1] > 0, ((0, 0), (1, 0)), constant_values=True)   # the original masks a 0 after bos
    assert visible.sum() > self.studies * 3
    return float(np.abs(self.log_probs(targets) - self.outputs["log_probs"]).max(-1)[visible].max())

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
