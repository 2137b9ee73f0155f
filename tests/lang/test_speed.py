"""Reading and proving the library stays quick; the figure itself is `benchmarks/load_rules.py`'s."""

from __future__ import annotations

import time

from peftc.lang import default_library
from peftc.lang.expression import _read_once
from peftc.lang.library import _proved, _read


def test_a_rule_is_proved_in_milliseconds() -> None:
    library, took = default_library(), []
    for _ in range(5):
        for cache in (_read, _proved, _read_once):
            cache.cache_clear()
        start = time.process_time()
        count = len(library.rules())
        took.append((time.process_time() - start) / count)
    assert min(took) < 0.010  # a few times what it takes, for slow machines
