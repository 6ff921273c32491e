"""BERT (Devlin et al., NAACL 2019), the encoder that reads a text for a classifier on its first token.

Several texts share a row: each word attends to the words of its own text alone and has its position in that text, so
that rows hold next to no padding, whatever the lengths of the texts. And as a classifier sees nothing but the first
token of a text, the last layer computes no other.

Shapes: R rows, T tokens of a row, P texts of a row, D width, H heads.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class BertSizes:
  """The numbers of a BERT; by default those of bert-base-uncased."""
  vocab_size: int = 30522
  width: int = 768
  num_layers: int = 12
  num_heads: int = 12
  feedforward_width: int = 3072
  max_length: int = 512             # positions that were learned
  num_token_types: int = 2          # first and second text of a pair; here all are first ones


class Bert(nn.Module):
  """Token ids -> the last layer's state of each text's first token."""
  sizes: BertSizes = BertSizes()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array, positions: jax.Array, texts: jax.Array, firsts: jax.Array) -> jax.Array:
    """Returns the states [R, P, D] of the tokens that `firsts` points at.

    Args:
      ids: [R, T].
      positions: [R, T], of a token in its text.
      texts: [R, T], the number of its text in the row; padding has a number of its own.
      firsts: [R, P], in 0..T-1. Any token may be asked for; what is asked for twice is computed twice.
    """
    sizes = self.sizes
    states = Embeddings(sizes, self.dtype, name="embeddings")(ids, positions)                     # [R, T, D]
    same_text = texts[:, :, None] == texts[:, None, :]                                           # [R, T, T]
    for number in range(sizes.num_layers - 1):
      states = Layer(sizes, self.dtype, name=f"layer_{number}")(states, states, same_text)
    asked = jnp.take_along_axis(states, firsts[:, :, None], 1)                                    # [R, P, D]
    same_text = jnp.take_along_axis(same_text, firsts[:, :, None], 1)                             # [R, P, T]
    return Layer(sizes, self.dtype, name=f"layer_{sizes.num_layers - 1}")(asked, states, same_text)


class Embeddings(nn.Module):
  """The sum of a token's, its position's and its type's vector, normalised."""
  sizes: BertSizes
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns [R, T, D] for ids and positions [R, T]."""
    def table(name, rows):
      return self.param(name, nn.initializers.normal(0.02), (rows, self.sizes.width))

    words = table("word", self.sizes.vocab_size)[ids]
    places = table("position", self.sizes.max_length)[positions]
    kind = table("token_type", self.sizes.num_token_types)[0]
    return norm("norm", self.dtype)(words + places + kind)


class Layer(nn.Module):
  """Self-attention and feed-forward, each added to what it read and normalised after that (post-norm)."""
  sizes: BertSizes
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, queries: jax.Array, states: jax.Array, allowed: jax.Array) -> jax.Array:
    """Returns the new states [R, Q, D] of `queries` [R, Q, D].

    Args:
      states: [R, T, D], what they attend to.
      allowed: bool [R, Q, T], to which of them.
    """
    sizes = self.sizes
    dense = lambda name, width: nn.Dense(width, dtype=self.dtype, name=name)
    heads = lambda x: x.reshape(*x.shape[:2], sizes.num_heads, -1).swapaxes(1, 2)                 # [R, H, L, D/H]

    # Heads lie outside of words before they are multiplied, and the weights are divided by their sum when they have
    # become a response, which is smaller: on a CPU both together saved a third of attention's time.
    scale = (sizes.width // sizes.num_heads) ** -0.5
    query = heads(dense("query", sizes.width)(queries) * scale)
    key, value = heads(dense("key", sizes.width)(states)), heads(dense("value", sizes.width)(states))
    scores = jnp.where(allowed[:, None], (query @ key.mT).astype(jnp.float32), -jnp.inf)          # [R, H, Q, T]
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))                                     # all see themselves
    response = (weights.astype(self.dtype) @ value) / weights.sum(-1, keepdims=True).astype(self.dtype)
    response = response.swapaxes(1, 2).reshape(queries.shape)                                     # [R, Q, D]
    queries = norm("attention_norm", self.dtype)(queries + dense("attention_output", sizes.width)(response))

    hidden = gelu(dense("hidden", sizes.feedforward_width)(queries))
    return norm("output_norm", self.dtype)(queries + dense("output", sizes.width)(hidden))


def norm(name: str, dtype: jnp.dtype) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-12, dtype=dtype, use_fast_variance=False, name=name)


def gelu(x: jax.Array) -> jax.Array:
  """x times the share of a normal distribution below it: exact, as BERT was trained, not by tanh."""
  return 0.5 * x * (1 + jax.lax.erf(x * 2 ** -0.5))
