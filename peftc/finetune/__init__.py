"""The ready-made job: data file → trained adapter → predictions, on transformers' Trainer.

Everything here uses the public functions of `peftc.api`; nothing of the compiler is decided here.
"""
