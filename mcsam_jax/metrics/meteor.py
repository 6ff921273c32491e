"""The two Java programs behind the scores: METEOR 1.5 and the Penn Treebank tokenizer.

pycocoevalcap brings both as jars. Nothing else needs Java, so where it is
missing, crashes or hangs, `JavaUnavailable` says why, and the caller leaves out
that one score and keeps the rest.
"""

import contextlib
import pathlib
import shutil
import subprocess
import threading
import time

import numpy as np
from pycocoevalcap.meteor import meteor as pycoco_meteor
from pycocoevalcap.tokenizer import ptbtokenizer

NUM_COUNTS = 23               # numbers that METEOR gives for a pair
# What stands for an empty text, which METEOR's lines can't hold: words that match no other.
_NO_REFERENCE, _NO_HYPOTHESIS = "emptyreference", "emptyhypothesis"


class JavaUnavailable(Exception):
  """Java is missing, failed or took too long. The message is what a user reads."""


class Meteor:
  """METEOR as one process for many scores: starting it takes seconds, a pair of reports a millisecond.

  Used as a context manager, which ends the process. A failure is final: later
  calls repeat its reason instead of waiting again.
  """

  def __init__(self, start_seconds: float = 120.0, pair_seconds: float = 0.1):
    self._limits = start_seconds, pair_seconds
    self._process = None
    self._failure = ""
    self._known = {}                                        # counts of each pair that was asked for

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self._close()

  def score(self, references: list[str], hypotheses: list[str]) -> tuple[float, list[float]]:
    """Returns METEOR of all n pairs together, and of each of them.

    Raises:
      JavaUnavailable: there is no Java, or it failed or hung.
    """
    counts = self.counts(references, hypotheses)
    return float(compute_meteor(counts.sum(0))), compute_meteor(counts).tolist()

  def counts(self, references: list[str], hypotheses: list[str]) -> np.ndarray:
    """Returns float64 [n, 23]: what METEOR counts in each pair, to be summed for `compute_meteor`.

    A pair is asked for once. The single chunk of equal texts is no fragment, and METEOR leaves it out of sums.

    Raises:
      JavaUnavailable: there is no Java, or it failed or hung.
    """
    pairs = [(_one_line(meant, _NO_REFERENCE), _one_line(said, _NO_HYPOTHESIS))
             for meant, said in zip(references, hypotheses, strict=True)]
    new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
    if new:
      self._known.update(zip(new, self._ask(new)))
    return np.array([self._known[pair] for pair in pairs], np.float64).reshape(len(pairs), NUM_COUNTS)

  def _ask(self, pairs: list[tuple[str, str]]) -> list[list[float]]:
    if self._failure:
      raise JavaUnavailable(self._failure)
    if self._process is None:
      self._process = self._start()
    process = self._process.meteor_p
    seconds = self._limits[0] + self._limits[1] * len(pairs)
    late = threading.Timer(seconds, process.kill)
    # All questions are on their way at once: a pair's way there and back would take as long as its answer.
    questions = "".join(f"SCORE ||| {meant} ||| {said}\n" for meant, said in pairs).encode()
    asking = threading.Thread(target=_write, args=(process.stdin, questions), daemon=True)
    began = time.monotonic()
    late.start()
    asking.start()
    try:
      answers = [[float(number) for number in process.stdout.readline().split()] for _ in pairs]
      if any(len(answer) != NUM_COUNTS for answer in answers):
        raise ValueError(f"not {NUM_COUNTS} numbers")
      return [_without_whole_chunk(answer) for answer in answers]
    except (OSError, ValueError) as error:                  # a closed pipe, or an answer that is no number
      self._close()
      hung = time.monotonic() - began >= seconds
      self._fail(f"took more than {seconds:.0f} s" if hung else f"ended early ({type(error).__name__})")
    finally:
      late.cancel()
      asking.join(1.0)

  def start(self) -> None:
    """Lets Java load its tables, which takes seconds, while the caller does something else."""
    if self._process is None and not self._failure:
      with contextlib.suppress(JavaUnavailable):            # which the first question will tell
        self._process = self._start()

  def _start(self) -> pycoco_meteor.Meteor:
    if not shutil.which("java"):
      self._fail("is not installed")
    try:
      return pycoco_meteor.Meteor()
    except OSError as error:
      self._fail(f"does not start ({error})")

  def _fail(self, what: str) -> None:
    self._failure = f"METEOR needs Java, which {what}"
    raise JavaUnavailable(self._failure)

  def _close(self) -> None:
    if self._process is None:
      return
    owner, self._process = self._process, None
    if owner.lock.locked():                       # a failed call leaves it so, and __del__ would wait forever
      owner.lock.release()
    process = owner.meteor_p
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
      with contextlib.suppress(OSError):                    # what is left in the buffer has no reader
        pipe.close()


def compute_meteor(counts: np.ndarray) -> np.ndarray:
  """Returns METEOR 1.5 [...] of summed counts [..., 23], as its Java computes it for English.

  The parameters are those that it was tuned to (Denkowski and Lavie, WMT 2014, task "rank", which -l en means): alpha
  weighs recall, delta content words, beta and gamma the penalty on matches in many chunks, and a match counts 1, .6,
  .8 or .6 for exact, stem, synonym or paraphrase. Counts: length of hypothesis and reference; function words in each;
  for each kind of match, content words of both and function words of both; chunks; matched words of each.
  """
  alpha, beta, gamma, delta, of_kind = 0.85, 0.2, 0.6, 0.75, np.array([1, 0.6, 0.8, 0.6])
  lengths, function_words = counts[..., 0:2], counts[..., 2:4]                # [..., (hypothesis, reference)]
  matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)            # [..., kind, (content, function), side]
  chunks, matched = counts[..., 20], counts[..., 21:23]
  weighted = np.einsum("...kcs,k,c->...s", matches, of_kind, [delta, 1 - delta])
  with np.errstate(divide="ignore", invalid="ignore"):
    precision, recall = np.moveaxis(
        weighted / (delta * (lengths - function_words) + (1 - delta) * function_words), -1, 0)
    f_mean = 1 / ((1 - alpha) / precision + alpha / recall)
    penalty = gamma * (chunks / matched.mean(-1)) ** beta
    return np.maximum(np.nan_to_num(f_mean * (1 - penalty)), 0)


def ptb_tokenize(texts: list[str], seconds: float = 300.0) -> list[str]:
  """Returns the texts lower-cased, in Penn Treebank tokens, without punctuation, as pycocoevalcap does.

  Its list of punctuation has brackets as -LRB-, the tokens -lrb-: so they stay, in the literature as here.
  pycocoevalcap's own call writes the reports into its package folder; here they pass through a pipe.

  Raises:
    JavaUnavailable: there is no Java, or it failed or hung.
  """
  if not shutil.which("java"):
    raise JavaUnavailable("PTB tokens need Java, which is not installed")
  jar = pathlib.Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
  command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar),
             "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
  try:
    done = subprocess.run(command, input="".join(" ".join(text.split()) + "\n" for text in texts),
                          capture_output=True, encoding="utf-8", timeout=seconds, check=True)
  except subprocess.TimeoutExpired as error:
    raise JavaUnavailable(f"PTB tokens need Java, which took more than {seconds:.0f} s") from error
  except (OSError, subprocess.CalledProcessError, UnicodeError) as error:
    raise JavaUnavailable(f"PTB tokens need Java, which failed ({type(error).__name__})") from error
  lines = done.stdout.split("\n")[:-1]
  if len(lines) != len(texts):
    raise JavaUnavailable(f"PTB tokens need Java, which gave {len(lines)} lines for {len(texts)} reports")
  return [" ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS) for line in lines]


def _without_whole_chunk(counts: list[float]) -> list[float]:
  written, meant = sum(counts[4:20:2]), sum(counts[5:20:2])                   # matched words
  if counts[20] == 1 and [written, meant] == counts[:2]:
    return [*counts[:20], 0.0, *counts[21:]]
  return counts


def _write(pipe, questions: bytes) -> None:
  with contextlib.suppress(OSError, ValueError):            # who reads the answers will see that there are none
    pipe.write(questions)
    pipe.flush()


def _one_line(text: str, if_empty: str) -> str:
  """Returns `text` as METEOR's protocol can carry it: no line break, no field separator, not empty."""
  return " ".join(text.replace("|||", " ").split()) or if_empty
