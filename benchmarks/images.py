"""How often the interval of a difference of AP holds it, for few images: percentiles of the bootstrap and Student's t.

python -m benchmarks.images
"""

from __future__ import annotations

import argparse

import numpy as np

from bench.judge.difference import (
    ClassMatches,
    Difference,
    Matches,
    average_precision,
    paired_difference,
    resampled,
)

TRUTH = 0.2
SHARES = (0.7, 0.7 - TRUTH)


def found_objects(rng: np.random.Generator, images: int) -> list[Matches]:
    """Two detectors that find a share of three objects an image, some images being hard; AP is that share."""
    place = np.arange(images).repeat(3)
    hard = rng.normal(0, 0.15, images)[place]
    sides = []
    for share in SHARES:
        right = np.broadcast_to(rng.random(place.size) < share + hard, (10, place.size))
        found = ClassMatches(place[right[0]], right[:, right[0]], ~right[:, right[0]], np.full(images, 3))
        sides.append(Matches(tuple(range(images)), (found,)))
    return sides


def difference(a: Matches, b: Matches, replicates: int) -> Difference:
    """As reports make it."""
    return paired_difference(*(resampled(one, replicates=replicates) for one in (a, b)))


def percentiles(a: Matches, b: Matches, replicates: int) -> tuple[float, float]:
    """The interval as it was: percentiles of the differences of the replicates."""
    count = len(a.image_ids)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=replicates)
    found = [average_precision(a, draw) - average_precision(b, draw) for draw in draws]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def coverage(images: int, runs: int, replicates: int, seed: int = 0) -> tuple[float, float]:
    """Share of intervals that hold the truth: percentiles, and as `paired_difference` makes them."""
    rng = np.random.default_rng([seed, images])
    held = np.zeros(2)
    for _ in range(runs):
        a, b = found_objects(rng, images)
        found = difference(a, b, replicates)
        low, high = percentiles(a, b, replicates)
        held += low <= TRUTH <= high, found.low <= TRUTH <= found.high
    return float(held[0] / runs), float(held[1] / runs)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--replicates", type=int, default=200)
    chosen = parser.parse_args(arguments)
    print("| images | percentiles, % | Student's t, % |\n|---:|---:|---:|")
    for images in (4, 8, 20, 50):
        before, after = coverage(images, chosen.runs, chosen.replicates)
        print(f"| {images} | {100 * before:.1f} | {100 * after:.1f} |", flush=True)


if __name__ == "__main__":
    main()
