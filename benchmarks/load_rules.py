"""How long it takes to read and prove the whole library of rules, without torch.

Each round starts a fresh Python that imports the rule language and then loads every rule, once with cold caches of
peftc and, as control, once again with them emptied. Medians over rounds, in milliseconds of CPU time, so that other
work on the machine counts little.

    python benchmarks/load_rules.py [--rounds 15] [--json results/load_rules.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

LIMIT = 50.0  # milliseconds for the whole library

PROBE = """
import sys, time
start = time.process_time()
import peftc.lang as lang
imported = time.process_time()
library = lang.default_library()
rules = library.rules()
loaded = time.process_time()
from peftc.lang.expression import _read_once
from peftc.lang.library import _proved, _read
_read.cache_clear(), _proved.cache_clear(), _read_once.cache_clear()
again = time.process_time()
library.rules()
done = time.process_time()
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
print(imported - start, loaded - imported, done - again, len(rules))
"""


def probe() -> list[float]:
    """Seconds to import, to load, and to load again; and how many rules there are."""
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> int:
    """Measure and print; 1 where loading takes longer than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    probe()  # the first one compiles the modules to bytecode
    rounds = [probe() for _ in range(arguments.rounds)]
    imported, loaded, again, count = (statistics.median(column) for column in zip(*rounds, strict=True))
    found = {
        "rules": int(count),
        "load_ms": loaded * 1e3,
        "load_again_ms": again * 1e3,
        "import_ms": imported * 1e3,
        "slowest_load_ms": max(row[1] for row in rounds) * 1e3,
        "rounds": len(rounds),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    print(f"{found['rules']} rules, {found['rounds']} rounds, medians")
    print(
        f"read and prove the library   {found['load_ms']:6.1f} ms (slowest {found['slowest_load_ms']:.1f}; bar {LIMIT:.0f})"
    )
    print(f"of that, for each rule        {found['load_ms'] / found['rules']:6.1f} ms")
    print(f"the same again               {found['load_again_ms']:6.1f} ms")
    print(f"import peftc.lang            {found['import_ms']:6.1f} ms (pydantic for the most part)")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(found["load_ms"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
