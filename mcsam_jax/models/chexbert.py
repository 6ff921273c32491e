"""CheXbert (Smit et al., EMNLP 2020): a BERT with 14 linear heads, one per finding of CheXpert.

Thirteen heads classify a finding as absent, positive, negative or uncertain; the head of No Finding has two classes.
The order of findings and classes is the one in the authors' code (stanfordmlgroup/CheXbert: constants.py,
models/bert_labeler.py).

Shapes: R rows, T tokens of a row, P reports of a row, F = 14 findings, C = 4 classes.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from mcsam_jax.models.bert import Bert, BertSizes

FINDINGS = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
            "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
            "Support Devices", "No Finding")                 # in the order of the heads
CLASSES = ("absent", "positive", "negative", "uncertain")    # of the heads; No Finding's has the first two


class CheXbert(nn.Module):
  """Packed reports -> logits."""
  sizes: BertSizes = BertSizes()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array, positions: jax.Array, texts: jax.Array, firsts: jax.Array) -> jax.Array:
    """Returns float32 [R, P, F, C] for the arguments of `Bert`; -inf where a head lacks a class."""
    states = Bert(self.sizes, self.dtype, name="bert")(ids, positions, texts, firsts).astype(jnp.float32)
    heads = []
    for number, finding in enumerate(FINDINGS):
      classes = 2 if finding == "No Finding" else len(CLASSES)
      logits = nn.Dense(classes, name=f"head_{number}")(states)
      heads.append(jnp.pad(logits, ((0, 0), (0, 0), (0, len(CLASSES) - classes)), constant_values=-jnp.inf))
    return jnp.stack(heads, 2)


@functools.cache
def expected(sizes: BertSizes) -> dict:
  """Returns the shapes of the variables of a CheXbert."""
  row = jnp.zeros((1, 1), jnp.int32)
  return jax.eval_shape(CheXbert(sizes).init, jax.random.key(0), row, row, row, row)
