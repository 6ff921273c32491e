"""What each protocol does to references and hypotheses."""

import shutil

import pytest

from input_pipeline.tokenizer import SentencePieceTokenizer, WordTokenizer
from mcsam_jax.metrics.protocols import apply_protocol, clean_hypothesis

TRAIN = ["The heart is normal. No effusion.", "The heart is big. No effusion.",
         "The lungs are clear. No effusion."]
RAW = "1. The heart is HUGE. No effusion/pneumothorax."
CLEANED = "the heart is huge . no effusionpneumothorax ."


@pytest.fixture(params=[False, True], ids=["separate ids", "shared ids"])
def tokenizer(request):
  return WordTokenizer.train(TRAIN, "iu_xray", threshold=2, shared_special_ids=request.param)


def test_r2gen_replaces_rare_words_and_truncates(tokenizer):
  references, hypotheses = apply_protocol("r2gen", [RAW], [RAW], tokenizer, "iu_xray", 60)
  assert references == ["the heart is <unk> . no <unk> ."]
  assert hypotheses == [CLEANED]                            # a generated rare word is kept
  references, hypotheses = apply_protocol("r2gen", [RAW], [RAW], tokenizer, "iu_xray", 4)
  assert references == ["the heart is"]
  assert hypotheses == ["the heart is"]


def test_clean_only_cleans(tokenizer):
  assert apply_protocol("clean", [RAW], [RAW], tokenizer, "iu_xray", 4) == ([CLEANED], [CLEANED])


@pytest.mark.parametrize("protocol", ["r2gen", "clean"])
def test_hypotheses_keep_unknown_words_and_stay_empty(protocol, tokenizer):
  generated = ["the heart is <unk> .", "", " ", "the unk is <unk> ."]
  _, hypotheses = apply_protocol(protocol, generated, generated, tokenizer, "iu_xray", 60)
  assert hypotheses == ["the heart is <unk> .", "", "", "the unk is <unk> ."]


def test_a_truncated_report_gets_no_full_stop_under_r2gen(tokenizer):
  generated = "the heart is"                                # the most that 3 tokens and eos allow
  _, hypotheses = apply_protocol("r2gen", [RAW], [generated], tokenizer, "iu_xray", 4)
  assert hypotheses == [generated]


def test_r2gen_leaves_its_own_references_unchanged(tokenizer):
  references, _ = apply_protocol("r2gen", [*TRAIN, RAW], [""] * 4, tokenizer, "iu_xray", 6)
  _, hypotheses = apply_protocol("r2gen", references, references, tokenizer, "iu_xray", 6)
  assert hypotheses == references


def test_sentencepiece_references_are_truncated_by_pieces():
  tokenizer = SentencePieceTokenizer.train(TRAIN * 20, "iu_xray", vocab_size=60)
  full, _ = apply_protocol("r2gen", TRAIN, TRAIN, tokenizer, "iu_xray", 60)
  clean, _ = apply_protocol("clean", TRAIN, TRAIN, tokenizer, "iu_xray", 60)
  assert full == clean
  truncated, _ = apply_protocol("r2gen", TRAIN, TRAIN, tokenizer, "iu_xray", 5)
  assert all(long.startswith(short) and 0 < len(short) < len(long) for short, long in zip(truncated, full))


@pytest.mark.skipif(not shutil.which("java"), reason="PTB tokens: Java is not installed")
def test_raw_is_lower_case_tokens_without_punctuation(tokenizer):
  references, hypotheses = apply_protocol(
      "raw", ["The heart's size is 3.5 cm (large).\nNo effusion.", ""], ["Heart <unk>, naïve.", "ok"],
      tokenizer, "iu_xray", 4)
  assert references == ["the heart 's size is 3.5 cm -lrb- large -rrb- no effusion", ""]
  assert hypotheses == ["heart <unk> naïve", "ok"]


@pytest.mark.skipif(not shutil.which("java"), reason="PTB tokens: Java is not installed")
def test_raw_agrees_with_pycocoevalcap(tokenizer):
  from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
  reports = [*TRAIN, RAW, "No acute disease; \"stable\" - T1-T2 [x] & 50%..."]
  expected = PTBTokenizer().tokenize({i: [{"caption": report}] for i, report in enumerate(reports)})
  references, _ = apply_protocol("raw", reports, [], tokenizer, "iu_xray", 4)
  assert references == [expected[i][0] for i in range(len(reports))]


def test_an_unknown_protocol_is_an_error(tokenizer):
  with pytest.raises(ValueError, match="protocol r2:"):
    apply_protocol("r2", TRAIN, TRAIN, tokenizer, "iu_xray", 60)


def test_a_nul_character_is_no_unknown_word():
  assert clean_hypothesis("lungs\0 clear <unk>", "iu_xray") == "lungs clear <unk> ."
