"""Describes memory slots by words: those of the topic that a slot started from, and those that select it now.

Training moves the slots, so only the words that select a slot now say what it has become.

Shapes: S memory slots, H heads.
"""

import functools
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.distributed.mesh import replicated
from mcsam_jax.inference.load import LoadedModel
from mcsam_jax.memory_init.initial_memory import InitialMemory
from mcsam_jax.models.mcsam import MCSAM

NUM_WORDS = 6     # per slot


class SlotDescription(NamedTuple):
  """The words of one memory slot."""
  topic: int | None          # index of the topic that it started from; None if the memory started at random
  topic_words: list[str]     # words of that topic
  top_words: list[str]       # words of the vocabulary that give it the most weight now


def describe_slots(loaded: LoadedModel, config: ConfigDict, tokenizer: Tokenizer, initial_memory: InitialMemory | None,
                   mesh: Mesh) -> list[SlotDescription]:
  """Returns the descriptions of all S slots; [] without memory.

  Args:
    initial_memory: the slots before training; None if they were random.
  """
  if not config.model.use_memory:
    return []
  compute_weights = jax.jit(functools.partial(compute_vocabulary_weights, loaded.model, config),
                            out_shardings=replicated(mesh))
  weights = np.array(compute_weights(loaded.variables))                                # [vocabulary, S]
  weights[[tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id]] = 0
  words = [word.strip("▁") for word in tokenizer.get_vocabulary()]
  weights[[index for index, word in enumerate(words) if not any(map(str.isalnum, word))]] = 0
  top_words = np.argsort(-weights, axis=0, kind="stable")[:NUM_WORDS].T                # [S, NUM_WORDS]
  descriptions = []
  for slot, indices in enumerate(top_words):
    topic, topic_words = None, []
    if initial_memory is not None and initial_memory.kind != "random":
      topic = int(initial_memory.slot_topics[slot])
      topic_words = list(initial_memory.topic_words[topic][:NUM_WORDS])
    descriptions.append(SlotDescription(topic, topic_words,
                                        [words[index] for index in indices if weights[index, slot] > 0]))
  return descriptions


def compute_vocabulary_weights(model: MCSAM, config: ConfigDict, variables: dict) -> jax.Array:
  """Returns the weight of each slot for each token of the vocabulary, averaged over heads: float32 [vocabulary, S].

  If queries include positions (`memory.query=word_position`), every token is queried at the first position after bos.
  """
  memory = model.apply(variables, method="project_memory")
  if config.memory.query == "word":
    _, state = cast(tuple[Any, dict[str, Any]], model.apply(
        variables, memory, False, method="vocabulary_responses", mutable=["intermediates"]))
    return state["intermediates"]["memory_bank"]["slot_weights"][0].mean(0)                    # from [H, vocabulary, S]
  tokens, positions = jnp.arange(model.vocab_size)[None], jnp.ones(model.vocab_size, jnp.int32)
  _, state = cast(tuple[Any, dict[str, Any]], model.apply(
      variables, tokens, positions, None, None, memory, False, method="embed_tokens", mutable=["intermediates"]))
  return state["intermediates"]["memory_bank"]["slot_weights"][0].mean(1)[0]                # from [1, H, vocabulary, S]
