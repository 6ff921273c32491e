"""The default: MCSAM, small, on synthetic chest X-rays. Every field of every config is explained here.

Other configs start from this tree and change values; they add no field.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0                         # of initialisation, record order, dropout

  config.data = ConfigDict({
      "name": "phantom",                  # phantom | r2gen_json | mimic_cxr
      "source_dir": "",                   # r2gen_json: folder with annotation.json and images/; mimic_cxr: MIMIC-CXR-JPG's
      "data_dir": "data",                 # records, vocabulary and cached features are written below it
      "restricted": False,                # True: no report text or id in logs, pages or TensorBoard
      "cleaning": "iu_xray",              # R2Gen's cleaning of reports: iu_xray | mimic_cxr
      "target": "findings",               # what to write: findings | impression | both
      "min_words": 0,                     # of a target, "_" not counted; studies with fewer are passed over
      "num_views": 2,                     # images of a study that the model sees; absent ones are masked
      "short_side": 256,                  # pixels of the stored images' shorter side; 0: as they are
      "dicom_rendering": "voi",           # of DICOM files: voi (as a viewer shows them) | mimic_cxr_jpg (equalised)
      "image_size": 192,                  # pixels of the square that the encoder sees
      "augment": False,                   # random crop, small rotation, brightness and contrast; training only
      "phantom": {                        # the synthetic set
          "seed": 0,
          "num_train": 1600,              # studies
          "num_val": 200,
          "num_test": 300,
      },
      "mimic_cxr": {                      # what PhysioNet gives
          "unit": "study",                # of a record: study | image (R2Gen's annotation.json in source_dir)
          "images": "jpg",                # in source_dir/files: jpg (MIMIC-CXR-JPG) | dcm (MIMIC-CXR)
          "reports": "",                  # mimic-cxr-reports.zip or its extracted folder; "": looked for in source_dir
          "labels": "chexpert",           # by which tool: chexpert | negbio | none; radiologists' of the test set count more
          "required_views": "any",        # that a study must have to be kept: any | frontal | lateral | both
          "view_order": "pa_first",       # which of several frontal films is the first: pa_first | acquisition
      },
  })

  config.prepare = ConfigDict({
      "num_workers": 0,                   # processes that build records; 0: one a core
      "beam_options": "",                 # of Apache Beam, which then builds them: --runner=DirectRunner, DataflowRunner ...
      "max_corrupt_records": 0,                    # studies that may be left out because a file can't be read
      "show_ids": False,                  # True (or --show-ids): messages about a restricted set name its records
  })

  config.tokenizer = ConfigDict({
      "kind": "word",                     # word (R2Gen's rules) | sentencepiece (byte pairs of the train reports)
      "threshold": 3,                     # word: rarer words become <unk> (R2Gen: 3 for IU X-Ray, 10 for MIMIC-CXR)
      "vocab_size": 1000,                 # sentencepiece: number of pieces, specials included
      "shared_special_ids": False,        # word: True makes pad, bos and eos all 0, as R2Gen does
      "max_length": 60,                   # tokens of a report, eos included; longer ones are cut
  })

  config.encoder = ConfigDict({
      "name": "efficientnet_lite0",       # resnet50 | resnet101 | efficientnet_lite0 | resnet_tiny (from scratch)
      "weights": "data/efficientnet_lite0.npz",   # file written by `mcsam import-weights`; "": random
      "frozen": True,                     # True: no gradient, no augmentation, features are computed once and cached
      "train_batch_norm": False,          # False: statistics stay as they were pretrained
  })

  config.memory = ConfigDict({
      "num_slots": 128,                   # S (R2GenCMN: 2,048)
      "slot_width": 128,                  # D_M; with memory_init topics or kmeans the width of the word vectors
      "num_heads": 4,
      "top_k": 32,                        # slots that answer a query, per head (R2GenCMN: 32)
      "consolidation": "residual",        # residual | gate
      "query": "word",                    # text queries: word_position | word
  })

  config.memory_init = ConfigDict({
      "kind": "topics",                   # topics (optimal transport) | kmeans | random
      "num_topics": 32,
      "word_vectors": "",                 # .npz of words and vectors; "": PPMI + SVD of the train reports
      "jitter": 0.1,                      # noise on the copies of a topic, as a share of its norm
      "epsilon": 0.05,                    # entropic regularisation of the transport (cost 1 - cosine)
      "steps": 150,                       # of learning topics and mixtures
      "batch_size": 128,                  # reports a step
      "learning_rate": 0.005,
  })

  config.model = ConfigDict({
      "width": 128,                       # d
      "num_heads": 4,
      "feedforward_width": 384,
      "encoder_layers": 1,                # transformer layers over the consolidated patches; 0 allowed
      "decoder_layers": 2,
      "dropout": 0.1,
      "patch_activation": "none",         # none | relu (R2GenCMN)
      "patch_positions": "learned",       # learned | sinusoidal (R2GenCMN)
      "word_positions": "learned",        # learned | sinusoidal (R2GenCMN)
      "norm": "layernorm",                # layernorm | r2gencmn (standard deviation unbiased, epsilon added to it)
      "num_memory_tokens": 8,                   # N_p, learnable memory tokens before the report
      "use_memory": True,
      "use_alignment": True,
      "use_memory_tokens": True,
      "align_on": "response",             # response | consolidated
      "align_targets": "same_text",       # identity | same_text | label_similarity
      "align_weight": 0.1,                # lambda
      "align_temperature": 0.07,          # where the learned temperature starts (CLIP: 0.07)
      "text_encoder_layers": 1,           # bidirectional, training only
  })

  config.optimizer = ConfigDict({
      "learning_rate": 2e-3,              # peak, of everything but the encoder
      "encoder_learning_rate": 1e-3,      # peak, of the image encoder
      "warmup_steps": 50,
      "schedule": "cosine",               # after warm-up: cosine | linear | constant
      "final_fraction": 0.05,             # of the peak, at the last step
      "weight_decay": 0.02,               # AdamW, on kernels only
      "b1": 0.9,
      "b2": 0.98,
      "clip_norm": 1.0,                   # of the global gradient; 0: no clipping
      "label_smoothing": 0.1,             # of the token loss
      "ema_decay": 0.0,               # of an exponential moving average of the parameters, which then writes; 0: none
  })

  config.train = ConfigDict({
      "batch_size": 32,                   # studies a step, over all devices
      "num_steps": 650,
      "compute_dtype": "float32",         # float32 | bfloat16, parameters stay float32; float64 for checks, all of it
      "grad_accum_steps": 1,                    # turns that a batch is read in, to save memory; gradient and losses stay the batch's
      "remat": "none",                    # none | layers: activations inside a layer are computed again for its gradient
      "log_every": 20,                    # steps; with the alignment, each line costs two more gradients (the terms' norms)
      "eval_every": 130,                  # steps between looks at val; a checkpoint goes with each
      "checkpoint_every": 0,              # steps between further checkpoints, without a look at val; 0: none
      "eval_studies": 200,                # val studies that are written and scored at each look; 0: all
      "eval_search": "beam",              # how they are written: beam | mbr, with the fields of decode
      "keep_last": 2,                     # checkpoints
      "best_metric": "CIDEr_macro_F1",    # val metric of the kept best checkpoint, which is evaluated: token_loss | BLEU_1 |
                                          # BLEU_4 | ROUGE_L | CIDEr | micro_F1 | macro_F1 | CIDEr_macro_F1 (the mean of
                                          # CIDEr and macro_F1); F1 of findings, uncertain as negative, macro over those
                                          # that references have; "": the last checkpoint is evaluated
      "host_threads": 2,                  # that decode images
      "max_corrupt_records": 0,                    # damaged records that a run passes over (the next one stands in) before it stops
      "watchdog_timeout_minutes": 30.0,               # without a sign of life before the process leaves with status 75; 0: it never does
      "profile_steps": 0,                 # that every start profiles once it is warm (W/logs); W/profile asks a running job
  })

  config.mesh = ConfigDict({
      "data": -1,                         # devices over which the batch is split; -1: all that are left
      "fsdp": 1,                          # devices over which parameters, the optimizer's state and the batch are split
      "tensor": 1,                        # devices that share the heads, hidden units and vocabulary of a layer
  })

  config.decode = ConfigDict({
      "search": "beam",                   # beam | mbr (of samples)
      "beam_size": 3,                     # 1: greedy
      "min_length": 0,                    # tokens before eos is allowed
      "length_penalty": 1.0,              # beam: alpha, scores are divided by ((5 + length) / 6) ** alpha (Wu et al. 2016);
                                          # 0: where nothing long is likely, the likeliest report is an empty one
      "finished_beams": "separate",             # beam: a report that ends is set apart (separate) | keeps its place (in_place, R2GenCMN)
      "no_repeat_ngram_size": 0,                  # no run of so many tokens stands twice in a report; 0: anything may
      "num_samples": 32,                  # consensus: reports drawn for a study, of which the most agreed-on is kept
      "retrieval_weight": 0.0,                # consensus: of the vote, for train reports, as likely as the alignment holds them
      "temperature": 0.8,                 # consensus: of the draws; 1: as the model says
      "top_k": 0,                         # consensus: only the k likeliest words are drawn; 0: all
      "top_p": 1.0,                       # consensus: only the likeliest words that together have this probability
      "batch_size": 32,                   # studies decoded together
  })

  config.eval = ConfigDict({
      "labeler": "phantom",               # reads findings: phantom (exact) | rules (of any report) | chexbert | none
      "chexbert": "",                     # its .npz, of `mcsam import-weights chexbert.pth FILE.npz --chexbert`
      "chexbert_dtype": "float32",        # of its computation: float32 | bfloat16 (faster on accelerators)
      "radeval": "",                      # more scores, by the package RadEval (extra `clinical`), which fetches models
                                          # from their hub: names of evaluation/radeval.py, with commas; "": none
      "num_permutations": 10,             # of the images between studies, whose mean is the shuffled-images control
      "seed": 0,                          # of the permutations and of the interval's resampling
      "explain": False,                   # the .jsonl (and `mcsam report --json`) also tells why each report was written:
                                          # log-probabilities of words, slots, train reports that recall the same (ids)
      "html_report": True,                # write an HTML page too, with every study and why its report was written
      "html_report_restricted": False,    # True: the page of a restricted data set shows reports, images and ids as well
  })
  return config
