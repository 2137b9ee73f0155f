"""The ready-made job: data file → trained adapter → predictions, on transformers' Trainer.

Everything here uses the public functions of `peftc.api`; nothing of the compiler is decided here.
"""

import logging

# Speaks of a faster CPU kernel to whoever imports transformers' Trainer, whether 4-bit weights are used or not.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.CRITICAL)
