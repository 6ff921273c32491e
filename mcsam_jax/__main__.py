"""Runs `python -m mcsam_jax VERB`, which is the same as `mcsam VERB`."""

import sys

from mcsam_jax.cli import main

sys.exit(main())
