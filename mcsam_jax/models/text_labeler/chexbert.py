"""CheXbert (Smit et al., EMNLP 2020): a BERT with 14 linear heads, one per finding of CheXpert.

Thirteen heads classify a finding as absent, positive, negative or uncertain; the head of No Finding has two classes.
The order of findings and classes is that of the authors' code (stanfordmlgroup/CheXbert: constants.py,
models/bert_labeler.py).

Shapes: R rows, T tokens per row, P reports per row, F = 14 findings, C = 4 classes.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.models.text_labeler.bert import Bert, BertConfig

FINDINGS = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
            "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
            "Support Devices", "No Finding")                 # in the order of the heads
CLASSES = ("absent", "positive", "negative", "uncertain")    # No Finding has the first two only


class CheXbert(nn.Module):
  """Packed reports -> logits."""
  config: BertConfig = BertConfig()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array, positions: jax.Array, text_ids: jax.Array, first_tokens: jax.Array) -> jax.Array:
    """Returns float32 [R, P, F, C], -inf for classes that a head lacks (arguments as in `Bert`)."""
    states = Bert(self.config, self.dtype, name="bert")(ids, positions, text_ids, first_tokens).astype(jnp.float32)
    heads = []
    for index, finding in enumerate(FINDINGS):
      num_classes = 2 if finding == "No Finding" else len(CLASSES)
      logits = nn.Dense(num_classes, name=f"head_{index}")(states)
      heads.append(jnp.pad(logits, ((0, 0), (0, 0), (0, len(CLASSES) - num_classes)), constant_values=-jnp.inf))
    return jnp.stack(heads, 2)


@functools.cache
def variable_shapes(config: BertConfig) -> dict:
  """Returns the variables of a CheXbert as `jax.ShapeDtypeStruct`s."""
  row = jnp.zeros((1, 1), jnp.int32)
  return jax.eval_shape(CheXbert(config).init, jax.random.key(0), row, row, row, row)
