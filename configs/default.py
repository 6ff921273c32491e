"""The schema of a config: every field, its default and its meaning.

Other configs start from this tree and change values; they add no field. Letters in comments: B studies, T tokens,
S memory slots, D width.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Returns the default config: a small model; every field may be set as `--config.section.field=value`."""
  config = ConfigDict()
  config.seed = 0                         # seed for initialization, record order, augmentation and dropout

  config.data = ConfigDict({
      "name": "phantom",                  # phantom (synthetic, needs no files) | r2gen_json | mimic_cxr, or
                                          # package.module:make_builder for your own (docs/extending.md)
      "source_dir": "",                   # folder of annotation.json and images/ (r2gen_json), or of MIMIC-CXR-JPG
      "data_dir": "data",                 # folder for prepared records, vocabularies and cached features
      "restricted": False,                # True: keep report texts and ids out of logs, HTML pages and TensorBoard
      "contact_sheet_restricted": False,  # True: `mcsam data` may draw images and reports of a restricted data set
      "cleaning": "iu_xray",              # R2Gen's report cleaning rules: iu_xray | mimic_cxr
      "target": "findings",               # report section to generate: findings | impression | both
      "min_words": 0,                     # skip studies whose target has fewer words ("_" doesn't count)
      "num_views": 2,                     # images per study; missing ones are masked
      "short_side": 256,                  # shorter side of stored images, in pixels; 0: keep the original size
      "max_image_pixels": 80_000_000,     # larger images are refused before they are decoded: a small file may claim
                                          # gigabytes. A film of 43 cm at 50 micrometers has 60 million
      "dicom_rendering": "voi",           # DICOM files: voi (as viewers show them) | mimic_cxr_jpg (equalized)
      "image_size": 224,                  # side of the square encoder input, in pixels
      "augment": False,                   # training only: random crop, small rotation, brightness and contrast; for a
                                          # frozen encoder, see encoder.cached_augmentations
      "phantom": {                        # only for data.name=phantom
          "seed": 0,                      # seed of the anatomy, findings and reports
          "num_train": 1600,              # studies in the train split
          "first_train": 0,               # index of its first study: with 1600, it shares no study with a train split
                                          # of 1600 studies; val and test stay the same
          "num_val": 200,                 # studies in the val split
          "num_test": 300,                # studies in the test split
      },
      "mimic_cxr": {                      # only for data.name=mimic_cxr
          "unit": "study",                # one record per: study | image (needs R2Gen's annotation.json in source_dir)
          "images": "jpg",                # files below source_dir/files: jpg (MIMIC-CXR-JPG) | dcm (MIMIC-CXR)
          "reports": "",                  # mimic-cxr-reports.zip or its extracted folder; "": search source_dir
          "labels": "chexpert",           # chexpert | negbio | none; radiologists' labels of the test set come first
          "required_views": "any",        # keep only studies with these views: any | frontal | lateral | both
          "view_order": "pa_first",       # order of several frontal images: pa_first | acquisition
      },
  })

  config.prepare = ConfigDict({
      "num_workers": 0,                   # processes that build records; 0: one per CPU core
      "beam_options": "",                 # build with Apache Beam: --runner=DirectRunner, --runner=DataflowRunner ...
      "max_corrupt_records": 0,           # unreadable studies to skip before preparation stops with an error
      "show_ids": False,                  # True (or --show-ids): messages about a restricted data set name its records
  })

  config.tokenizer = ConfigDict({
      "kind": "word",                     # word (R2Gen's rules) | sentencepiece (byte pairs from the train reports), or
                                          # package.module:Class for your own (docs/extending.md)
      "threshold": 3,                     # word: rarer words become <unk> (R2Gen: 3 for IU X-Ray, 10 for MIMIC-CXR)
      "vocab_size": 1000,                 # sentencepiece: number of pieces, special tokens included
      "shared_special_ids": False,        # word: True uses id 0 for pad, bos and eos alike, as R2Gen does
      "max_length": 60,                   # maximum T, eos included; longer reports are truncated
  })

  config.encoder = ConfigDict({
      "name": "resnet50",                 # resnet50 | resnet101 | efficientnet_lite0 | densenet121 (torchxrayvision) |
                                          # dinov2_small | dinov2_base | rad_dino | resnet_tiny (for tests), or
                                          # package.module:function for your own (docs/extending.md)
      "weights": "",                      # .npz written by `mcsam import-weights`; "": random initialization
      "frozen": False,                    # True: no gradient; features are computed once and cached (docs/training.md)
      "trained_stages": 0,                # frozen: this many last stages are trained all the same, from the cached
                                          # outputs of the others; not for dinov2_* and rad_dino
      "cached_augmentations": 0,          # frozen: augmented versions of each training image that are cached, of which
                                          # each epoch uses another one; 0: only the image as it is
      "train_batch_norm": False,          # False: keep the pretrained batch statistics
  })

  config.memory = ConfigDict({
      "num_slots": 128,                   # S (R2GenCMN: 2,048)
      "slot_width": 128,                  # width of a slot; for memory_init topics and kmeans, of the word vectors too
      "num_heads": 4,                     # heads of the attention to the slots; divides model.width
      "top_k": 32,                        # slots that each query attends to, per head (R2GenCMN: 32)
      "consolidation": "residual",        # how responses are added to their queries: residual | gate
      "query": "word",                    # text queries: word_position (word and position embedding) | word
  })

  config.memory_init = ConfigDict({
      "kind": "topics",                   # topics (optimal transport) | kmeans | random
      "num_topics": 32,                   # topics that the slots are copies of
      "word_vectors": "",                 # .npz with words and vectors; "": PPMI and SVD of the train reports
      "jitter": 0.1,                      # noise added to the copies of a topic, relative to its norm
      "epsilon": 0.05,                    # entropic regularization of the transport (cost 1 - cosine)
      "steps": 150,                       # gradient steps that fit topics and mixtures
      "batch_size": 128,                  # reports per step
      "learning_rate": 0.005,             # initial learning rate of Adam, with cosine decay
  })

  config.model = ConfigDict({
      "width": 128,                       # D
      "num_heads": 4,                     # heads of all other attention; divides width
      "feedforward_width": 384,           # width of the hidden layer after each attention
      "encoder_layers": 1,                # transformer layers over the consolidated patches; 0: none
      "decoder_layers": 2,                # causal layers over memory tokens and the report
      "dropout": 0.1,                     # dropout rate of embeddings, attention weights and layers
      "patch_activation": "none",         # after the patch projection: none | relu (R2GenCMN)
      "patch_positions": "learned",       # learned | sinusoidal (R2GenCMN)
      "word_positions": "learned",        # learned | sinusoidal (R2GenCMN)
      "norm": "layernorm",                # layernorm | r2gencmn (unbiased standard deviation, epsilon added to it)
      "num_memory_tokens": 8,             # learned tokens that precede the report in the decoder
      "use_memory": True,                 # False: patches and words query no memory
      "use_alignment": True,              # False: no alignment loss, no text encoder, no image embedding
      "use_memory_tokens": True,          # False: the decoder starts with the report
      "align_on": "response",             # align the memory's: response | consolidated (query plus response)
      "align_targets": "same_text",       # identity | same_text | label_similarity
      "align_weight": 0.1,                # lambda, the weight of the alignment loss
      "align_temperature": 0.07,          # initial value of the learned temperature (CLIP: 0.07)
      "text_encoder_layers": 1,           # bidirectional layers over the report, training only
      "findings_head": False,             # predict the 14 findings and hand them to the decoder as memory tokens
      "findings_weight": 0.1,             # weight of the findings loss
  })

  config.optimizer = ConfigDict({
      "learning_rate": 2e-3,              # peak learning rate of everything but the image encoder
      "encoder_learning_rate": 1e-3,      # peak learning rate of the image encoder
      "warmup_steps": 50,
      "schedule": "cosine",               # decay after warm-up: cosine | linear | constant, or package.module:function
                                          # for your own (docs/extending.md)
      "final_fraction": 0.05,             # learning rate at the last step, relative to the peak
      "weight_decay": 0.02,               # AdamW; kernels only
      "b1": 0.9,                          # AdamW: decay rate of the mean of gradients
      "b2": 0.98,                         # AdamW: decay rate of the mean of squared gradients
      "clip_norm": 1.0,                   # maximum global gradient norm; 0: no clipping
      "label_smoothing": 0.1,             # for the token loss
      "ema_decay": 0.0,                   # evaluate an exponential moving average of the parameters; 0: no average
  })

  config.train = ConfigDict({
      "objective": "likelihood",          # likelihood (of the references) | reward (of sampled reports, see `reward`)
      "init_from": "",                    # WORKDIR or WORKDIR@STEP of another run: start from its parameters (best or
                                          # last checkpoint without STEP; EMA if it has them), tokenizer, initial memory
                                          # and pretrained encoder; encoder.weights is not read then
      "batch_size": 32,                   # B, studies per step over all devices
      "num_steps": 650,                   # may be raised later to extend a finished run in the same workdir
      "compute_dtype": "float32",         # float32 | bfloat16 (parameters stay float32) | float64 (parameters too)
      "grad_accum_steps": 1,              # microbatches per step, to save memory; loss and gradient are the batch's
      "loss_term": "",                    # package.module:function of a loss term of your own (docs/extending.md)
      "loss_term_weight": 1.0,            # weight of that term; the weight of the token loss is 1
      "remat": "none",                    # none | layers: recompute a layer's activations in the backward pass
      "log_every": 50,                    # steps
      "log_term_norms": True,             # with alignment, log the gradient norm of each loss term: a second program to
                                          # compile, and two extra gradients per log
      "eval_every": 325,                  # steps between evaluations on val, each followed by a checkpoint
      "checkpoint_every": 0,              # steps between additional checkpoints without evaluation; 0: none
      "eval_studies": 200,                # val studies to decode and score per evaluation; 0: all
      "eval_search": "beam",              # decoding during evaluation: beam | mbr, with the fields of decode
      "keep_last": 2,                     # number of most recent checkpoints to keep
      "best_metric": "CIDEr_macro_F1",    # val metric that selects the best checkpoint, which is kept and evaluated:
                                          # token_loss | BLEU_1 | BLEU_4 | ROUGE_L | CIDEr | micro_F1 | macro_F1 |
                                          # CIDEr_macro_F1 (mean of CIDEr and macro_F1). F1 is over findings, uncertain
                                          # counts as negative, macro over findings present in the references.
                                          # "": evaluate the last checkpoint
      "labels": "records",                # findings that training learns from: records (as prepared), or read from the
                                          # train reports by a labeler: rules | phantom | chexbert (needs eval.chexbert)
      "patience": 0,                      # stop after this many evaluations without a better best_metric; 0: never
      "host_threads": 2,                  # threads that decode images on each host
      "max_corrupt_records": 0,           # damaged records to replace by their successors before the run stops
      "watchdog_timeout_minutes": 30.0,   # exit with status 75 after this long without progress; 0: never
      "profile_steps": 0,                 # steps to profile once a start is warm (in WORKDIR/logs); for a running job,
                                          # write the number of steps into WORKDIR/profile
  })

  config.reward = ConfigDict({            # only for train.objective=reward, see docs/reward.md
      "num_samples": 5,                   # K, reports sampled per study and step; each is compared with the others
      "temperature": 1.0,                 # divides the logits of the policy that is sampled and trained
      "cider": 1.0,                       # weight of CIDEr-D / 10, with document frequencies of the train reports
      "rouge_l": 0.0,                     # weight of ROUGE-L
      "findings": 1.0,                    # weight of the F1 of the abnormal findings that a report states
      "labeler": "rules",                 # extracts the findings: phantom | rules | chexbert (needs eval.chexbert)
      "cross_entropy_weight": 0.1,        # weight of the likelihood loss, alignment and dropout included
      "kl_weight": 0.0,                   # weight of the KL divergence from the start model, per token
  })

  config.mesh = ConfigDict({
      "data": -1,                         # devices that split the batch; -1: all that remain
      "fsdp": 1,                          # devices that split the batch, the parameters and the optimizer state
      "tensor": 1,                        # devices that split heads, hidden units and vocabulary
  })

  config.decode = ConfigDict({
      "search": "beam",                   # beam | mbr (minimum Bayes risk over samples)
      "beam_size": 3,                     # 1: greedy
      "min_length": 0,                    # tokens before eos is allowed
      "length_penalty": 1.0,              # beam: alpha; ((5 + length) / 6) ** alpha divides scores (Wu et al. 2016);
                                          # with 0, an empty report may win where no long one is likely
      "finished_beams": "separate",       # beam: keep finished reports separate | in_place (in their beam, R2GenCMN)
      "no_repeat_ngram_size": 0,          # forbid repeating n-grams of this size within a report; 0: allow all
      "num_samples": 32,                  # mbr: samples per study; the one with the highest expected agreement is kept
      "retrieval_weight": 0.0,            # mbr: weight of votes from retrieved train reports (0 to 1), by alignment
      "retrieved_candidates": 0,          # mbr: the most probable retrieved train reports that may be chosen themselves
      "utility": {                        # mbr: expected utility of a candidate, see docs/decoding.md
          "cider": 1.0,                   # weight of CIDEr-D / 10
          "ngram_overlap": 0.0,           # weight of the n-gram overlap, as BLEU and ROUGE see it
          "overlap_recall": 0.5,          # weight of recall in the overlap, of precision the rest (0 to 1): with more,
                                          # reports get longer
          "rouge_l": 0.0,                 # weight of ROUGE-L
          "findings": 0.0,                # weight of stated findings: each adds its probability minus the threshold
          "finding_threshold": 0.2,       # best: half of the F1 that is reached on val
          "rarity_exponent": 0.0,         # p_f counts (largest rate / rate of f) ** this; 0: all findings count alike
          "head_weight": 0.0,             # weight of the findings head in p_f (0 to 1); the rest are stated findings
          "labeler": "rules",             # extracts the findings: phantom | rules | chexbert (needs eval.chexbert)
      },
      "temperature": 0.8,                 # mbr: sampling temperature; 1: the model's distribution
      "top_k": 0,                         # mbr: sample from the k most likely tokens; 0: all
      "top_p": 1.0,                       # mbr: sample from the most likely tokens with this total probability
      "batch_size": 32,                   # studies decoded at once
  })

  config.eval = ConfigDict({
      "labeler": "rules",                 # extracts findings: phantom (exact) | rules (any report) | chexbert | none
      "chexbert": "",                     # .npz written by `mcsam import-weights chexbert`
      "chexbert_dtype": "float32",        # float32 | bfloat16 (faster on accelerators)
      "radeval": "",                      # extra scores from the package RadEval (extra `clinical`), which downloads
                                          # models: comma-separated names of metrics/radeval.py; "": none
      "metrics": "",                      # package.module:function of metrics of your own, separated by commas (see
                                          # docs/extending.md); "": none
      "manual_labels": "",                # CSV with the column id and labels that people assigned (1, 0, -1 or empty),
                                          # one column per finding: F1 against them, too
      "num_permutations": 10,             # shuffled-images control: average over this many permutations of the images
      "seed": 0,                          # seed for the permutations and for bootstrap resampling
      "explain": False,                   # add explanations to the .jsonl (and to `mcsam report --json`): token
                                          # log-probabilities, memory slots, and ids of similar train reports
      "html_report": True,                # also write an HTML page with all studies and explanations
      "html_report_restricted": False,    # True: for a restricted data set, too, the page shows reports, images and ids
  })
  return config
