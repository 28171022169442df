"""A checkpoint with a published model's shape and random weights, for speed without a download.

    python benchmarks/serving/make_checkpoint.py tinyllama-1.1b-shape CHECKPOINT

What an engine computes, and so its times and memory, depends on a model's shape, not on what its weights were trained for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "drift"))

from whole_study import SHAPES, random_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--store", type=Path, default=Path("store"), help="keeps the tokenizer it is given")
    given = parser.parse_args()
    print(random_checkpoint(given.shape, given.directory, given.store))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
