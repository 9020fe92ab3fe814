"""orthant's log_iv against scipy.special.ive, interleaved in one run.

    pip install scipy numpy
    python benches/peers/scipy_bessel.py [--points N] [--rounds R]

Each round times SciPy (one thread: ive alone, and ln(ive) + x, which is what log_iv gives) and then orthant on the same
points, so that a change of the machine's clock meets both. Reported: millions of points a second, medians over the rounds,
and orthant's f64 on one thread over SciPy's ive alone. Values are compared first, where SciPy's are finite.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.special import ive

ROOT = Path(__file__).resolve().parents[2]


def executable():
    """Builds the Rust half and returns its path."""
    command = ["cargo", "bench", "--bench", "peer_bessel", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    built = [json.loads(line) for line in lines]
    return next(line["executable"] for line in built if line.get("target", {}).get("name") == "peer_bessel")


def cases(n, rng):
    log_x = 10.0 ** rng.uniform(-3, 4, n)
    yield "orders 0-150, x log-uniform 1e-3..1e4", rng.uniform(0, 150, n), log_x
    yield "integer orders 0-150, x uniform 0..1000", rng.integers(0, 151, n).astype(float), rng.uniform(1e-3, 1000, n)
    yield "orders 0-150, x uniform 0..150", rng.uniform(0, 150, n), rng.uniform(1e-3, 150, n)
    yield "orders 0-1e4, x log-uniform 1e-3..1e4", rng.uniform(0, 1e4, n), log_x
    yield "orders log-uniform 1e-2..1e4, x the same", 10.0 ** rng.uniform(-2, 4, n), 10.0 ** rng.uniform(-2, 4, n)
    yield "order 1023, x log-uniform 1e-3..1e4", np.full(n, 1023.0), log_x


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ours = executable()
    print("Mpts/s on one thread        ive  ln(ive)+x |   f64     f32  f32/f64 | 2 threads: f64    f32 | f64 / ive")
    for name, v, x in cases(options.points, np.random.default_rng(7)):
        with tempfile.TemporaryDirectory() as folder, np.errstate(divide="ignore"):
            points = Path(folder) / "points"
            np.concatenate([v, x]).astype("<f8").tofile(points)
            rounds = []
            for _ in range(options.rounds):
                row = {"ive": seconds(lambda: ive(v, x)), "log": seconds(lambda: np.log(ive(v, x)) + x)}
                row |= json.loads(subprocess.run([ours, points], check=True, capture_output=True, text=True).stdout)
                rounds.append(row)
            values = np.fromfile(f"{points}.values", "<f8")
            theirs = np.log(ive(v, x)) + x
        finite = np.isfinite(theirs)
        error = np.abs(values - theirs)[finite] / np.maximum(np.abs(theirs), np.hypot(v, x))[finite]
        # AMOS is good to about 1e-10 at the orders and arguments here.
        assert error.max() < 1e-9, f"{name}: values differ by {error.max():.1e}"
        rate = {key: options.points / np.median([row[key] for row in rounds]) / 1e6 for key in rounds[0]}
        print(f"{name}: SciPy not finite {100 * (1 - finite.mean()):.0f} %, else within {error.max():.0e}")
        print(
            f"{'':22}{rate['ive']:9.2f}{rate['log']:11.2f} |{rate['f64_1']:6.1f}{rate['f32_1']:8.1f}"
            f"{rate['f32_1'] / rate['f64_1']:9.2f} |{rate['f64_2']:15.1f}{rate['f32_2']:7.1f} |{rate['f64_1'] / rate['ive']:10.1f}"
        )


if __name__ == "__main__":
    main()
