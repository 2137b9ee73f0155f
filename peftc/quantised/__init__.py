"""Weights in fewer bits: packing and unpacking, the operators that read them, and what stands in for them in a capture."""

from peftc.quantised.loaded import Origin, as_loaded, taken_over
from peftc.quantised.standing_in import standing_in
from peftc.quantised.weight import QuantisedWeight, quantise, quantised_in, unpacked, weight_at

__all__ = [
    "Origin",
    "QuantisedWeight",
    "as_loaded",
    "quantise",
    "quantised_in",
    "standing_in",
    "taken_over",
    "unpacked",
    "weight_at",
]
