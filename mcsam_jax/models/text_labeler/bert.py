"""BERT (Devlin et al., NAACL 2019) as the encoder of a text classifier that reads the first token's state.

Several texts are packed into one row: each token attends to its own text only and is numbered within it, so that rows
have almost no padding, whatever the lengths of the texts. Because a classifier reads only the first token of a text,
the last layer computes no other.

Shapes: R rows, T tokens per row, P texts per row, Q queries, H heads, D width.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes of a BERT; the defaults are those of bert-base-uncased."""
  vocab_size: int = 30522
  width: int = 768
  num_layers: int = 12
  num_heads: int = 12
  feedforward_width: int = 3072
  max_length: int = 512             # number of position embeddings
  num_token_types: int = 2          # first and second text of a pair; here every text is a first one


class Bert(nn.Module):
  """Packed token ids -> the last layer's states of selected tokens."""
  config: BertConfig = BertConfig()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array, positions: jax.Array, text_ids: jax.Array, first_tokens: jax.Array) -> jax.Array:
    """Returns the states [R, P, D] of the tokens at `first_tokens`.

    Args:
      ids: int [R, T].
      positions: int [R, T], position of each token in its text.
      text_ids: int [R, T], number of each token's text within the row; padding has a number of its own.
      first_tokens: int [R, P], in 0..T-1. Any token may be selected; one selected twice is computed twice.
    """
    config = self.config
    states = BertEmbeddings(config, self.dtype, name="embeddings")(ids, positions)                # [R, T, D]
    same_text = text_ids[:, :, None] == text_ids[:, None, :]                                     # [R, T, T]
    for index in range(config.num_layers - 1):
      states = BertLayer(config, self.dtype, name=f"layer_{index}")(states, states, same_text)
    selected = jnp.take_along_axis(states, first_tokens[:, :, None], 1)                           # [R, P, D]
    same_text = jnp.take_along_axis(same_text, first_tokens[:, :, None], 1)                       # [R, P, T]
    return BertLayer(config, self.dtype, name=f"layer_{config.num_layers - 1}")(selected, states, same_text)


class BertEmbeddings(nn.Module):
  """The normalized sum of token, position and token-type embeddings."""
  config: BertConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns [R, T, D] for ids and positions [R, T]."""
    def table(name, rows):
      return self.param(name, nn.initializers.normal(0.02), (rows, self.config.width))

    word = table("word", self.config.vocab_size)[ids]
    position = table("position", self.config.max_length)[positions]
    token_type = table("token_type", self.config.num_token_types)[0]
    return layer_norm("norm", self.dtype)(word + position + token_type)


class BertLayer(nn.Module):
  """Self-attention and feed-forward with residuals, each followed by a norm (post-norm)."""
  config: BertConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, queries: jax.Array, states: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the new states [R, Q, D] of `queries` [R, Q, D].

    Args:
      queries: states of the tokens to compute.
      states: [R, T, D], states of all tokens of the rows.
      mask: bool [R, Q, T], True where a query attends to a token.
    """
    config = self.config
    dense = lambda name, width: nn.Dense(width, dtype=self.dtype, name=name)
    split_heads = lambda x: x.reshape(*x.shape[:2], config.num_heads, -1).swapaxes(1, 2)          # [R, H, L, D/H]

    # The head axis is moved before the token axis ahead of the products, and the weighted sum (smaller than the
    # weights) is normalized instead of the weights: on a CPU both together saved a third of attention's time.
    scale = (config.width // config.num_heads) ** -0.5
    query = split_heads(dense("query", config.width)(queries) * scale)
    key, value = split_heads(dense("key", config.width)(states)), split_heads(dense("value", config.width)(states))
    scores = jnp.where(mask[:, None], (query @ key.mT).astype(jnp.float32), -jnp.inf)             # [R, H, Q, T]
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))                # finite: every token attends to itself
    attended = (weights.astype(self.dtype) @ value) / weights.sum(-1, keepdims=True).astype(self.dtype)
    attended = attended.swapaxes(1, 2).reshape(queries.shape)                                     # [R, Q, D]
    queries = layer_norm("attention_norm", self.dtype)(queries + dense("attention_output", config.width)(attended))

    hidden = gelu(dense("hidden", config.feedforward_width)(queries))
    return layer_norm("output_norm", self.dtype)(queries + dense("output", config.width)(hidden))


def layer_norm(name: str, dtype: jnp.dtype) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-12, dtype=dtype, use_fast_variance=False, name=name)


def gelu(x: jax.Array) -> jax.Array:
  """Returns x times the standard normal CDF at x: exact, as BERT was trained, not the tanh approximation."""
  return 0.5 * x * (1 + jax.lax.erf(x * 2 ** -0.5))
