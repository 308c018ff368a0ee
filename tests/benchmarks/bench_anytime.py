"""Members asked, accuracy and time of an exported bag of digits, by when its vote may stop.

    uv run bend run && uv run bend export
    uv run python tests/benchmarks/bench_anytime.py ./bend-export/VERSION

Looks at the test part: nothing is chosen by what comes out. One JSON line a case.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from bend_ray.data.datasets import Digits
from bend_ray.serve.bag import Bag
from bend_ray.serve.settings import ServeSettings, Stop

STOPS = {
    "never": Stop(),
    "decided": Stop(decided=True),
    **{f"confidence {c}": Stop(confidence=c) for c in (0.99, 0.9, 0.5)},
}


def median_ms(bag: Bag, pixels: np.ndarray, stop: Stop) -> float:
    """Milliseconds of one answer."""
    taken = []
    for _ in range(30):
        started = time.perf_counter()
        bag.answer({"images": pixels}, [stop] * len(pixels))
        taken.append(time.perf_counter() - started)
    return round(1000 * statistics.median(taken), 3)


def main(folder: Path) -> None:
    test = Digits().load().test
    pixels, labels = test.inputs.numpy(), test.labels_N.numpy()
    for groups in (1, 4, 12):
        bag = Bag.load(folder, ServeSettings(groups=groups))
        for name, stop in STOPS.items():
            answers = bag.answer({"images": pixels}, [stop] * len(pixels))
            said = {
                "groups": groups,
                "way": str(bag.way),
                "stop": name,
                "members_asked": round(float(answers["members_used"].mean()), 1),
                "accuracy": round(float((answers["label"] == labels).mean()), 4),
                "batch_1_ms": median_ms(bag, pixels[:1], stop),
                "batch_32_ms": median_ms(bag, pixels[:32], stop),
            }
            print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
