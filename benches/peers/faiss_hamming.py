"""orthant's hamming::Index against FAISS's IndexBinaryFlat on the CPU, interleaved in one run.

    pip install faiss-cpu numpy
    python benches/peers/faiss_hamming.py [--rounds R] [--dram]

A million uniform codes: one query with k = 10, and 100 queries with k = 100. Each round times FAISS on one thread (its heap and its counting way, of which
the faster counts), then orthant on one thread and on two, and a plain read of the base. Reported: the medians over the rounds of the best time of each.
Ids and distances are compared first, also on clustered codes, where tens of thousands are at distance 0, for k = 1, 10, 100, 1000 and 16 to 4096 bits.
--dram: one query over 10 million codes of 256 bits, 320 MB, too.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def executable():
    """Builds the Rust half and returns its path."""
    command = ["cargo", "bench", "--bench", "peer_hamming", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    built = [json.loads(line) for line in lines]
    return next(line["executable"] for line in built if line.get("target", {}).get("name") == "peer_hamming")


def best(call, budget=0.5):
    begin, least = time.perf_counter(), float("inf")
    while time.perf_counter() - begin < budget:
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def clustered(n, size, random):
    """Five codes, the first of which has 2 in 3; a bit of every fourth is turned over."""
    centres = random.integers(0, 256, (5, size), dtype=np.uint8)
    codes = centres[np.where(random.random(n) < 2 / 3, 0, random.integers(0, 5, n))]
    rows = np.flatnonzero(random.random(n) < 0.25)
    codes[rows, random.integers(0, size, len(rows))] ^= (1 << random.integers(0, 8, len(rows))).astype(np.uint8)
    return codes


class Peer:
    def __init__(self, program, folder, base, queries, k):
        self.program, self.path, self.k = program, Path(folder) / "codes", k
        self.bits, self.n, self.count = base.shape[1] * 8, len(base), len(queries)
        self.path.write_bytes(base.tobytes() + queries.tobytes())

    def run(self, seconds):
        sizes = [str(x) for x in (self.bits, self.n, self.count, self.k, seconds)]
        ran = subprocess.run([self.program, str(self.path), *sizes], check=True, capture_output=True, text=True)
        return json.loads(ran.stdout)

    def compare(self, index, queries):
        values = np.fromfile(f"{self.path}.values", dtype="<u4")
        at = 0
        for rows, k in ((queries, min(self.k, self.n)), (queries[:1], min(10, self.n))):
            size = len(rows) * k
            ids, distances = (values[at + i * size:][:size].reshape(len(rows), k) for i in (0, 1))
            at += 2 * size
            expected_distances, expected = index.search(rows, k)
            assert (distances == expected_distances).all(), f"distances differ: {self.bits} bits, k {k}"
            assert (ids == expected).all(), f"ids differ: {self.bits} bits, k {k}"


def equal(program):
    random = np.random.default_rng(1)
    for bits in (16, 64, 128, 256, 1024, 4096):
        n = 100_000 if bits <= 1024 else 20_000
        for kind, base in (("uniform", random.integers(0, 256, (n, bits // 8), dtype=np.uint8)),
                           ("clustered", clustered(n, bits // 8, random))):
            queries = np.concatenate([base[:5], random.integers(0, 256, (5, bits // 8), dtype=np.uint8)])
            index = faiss.IndexBinaryFlat(bits)
            index.add(base)
            # Its counting way, whatever k: ties by the lowest id.
            index.use_heap = False
            for k in (1, 10, 100, 1000):
                with tempfile.TemporaryDirectory() as folder:
                    peer = Peer(program, folder, base, queries, k)
                    peer.run(0.0001)
                    peer.compare(index, queries)
            ties = (np.bitwise_count(base ^ base[0]).sum(axis=1) == 0).sum() if hasattr(np, "bitwise_count") else "?"
            print(f"equal: {bits} bits, {n} {kind} codes, {ties} at distance 0 of the first", flush=True)


def timed(program, bits, n, count, rounds, batch=True):
    random = np.random.default_rng(bits)
    base = random.integers(0, 256, (n, bits // 8), dtype=np.uint8)
    queries = random.integers(0, 256, (count, bits // 8), dtype=np.uint8)
    index = faiss.IndexBinaryFlat(bits)
    index.add(base)
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(program, folder, base, queries, 100)
        for turn in range(rounds):
            for heap in (True, False):
                index.use_heap = heap
                name = "heap" if heap else "counting"
                taken.setdefault(f"faiss_one_{name}", []).append(best(lambda: index.search(queries[:1], 10)))
                if batch:
                    taken.setdefault(f"faiss_many_{name}", []).append(best(lambda: index.search(queries, 100)))
            for name, seconds in peer.run(0.5).items():
                taken.setdefault(name, []).append(seconds)
            if turn == 0:
                index.use_heap = True
                peer.compare(index, queries)
    ms = {name: float(np.median(seconds)) * 1e3 for name, seconds in taken.items()}
    one = min(ms["faiss_one_heap"], ms["faiss_one_counting"])
    gb = n * bits / 8e9
    print(f"\n{bits} bits, {n} codes ({gb * 1e3:.0f} MB), ms a call")
    print(f"  one query, k 10:   FAISS {one:.3f}   orthant {ms['one_1']:.3f} on 1 thread, {ms['one_2']:.3f} on 2   "
          f"x FAISS {one / ms['one_1']:.2f}   2 threads x 1 {ms['one_1'] / ms['one_2']:.2f}")
    print(f"  reading the base:  {ms['read_1']:.3f} on 1 thread ({gb / ms['read_1'] * 1e3:.1f} GB/s), {ms['read_2']:.3f} on 2   "
          f"share {ms['read_1'] / ms['one_1']:.2f} on 1 thread, {ms['read_2'] / ms['one_2']:.2f} on 2")
    if batch:
        many = min(ms["faiss_many_heap"], ms["faiss_many_counting"])
        print(f"  {count} queries, k 100: FAISS {many:.1f}   orthant {ms['many_1']:.1f} on 1 thread, {ms['many_2']:.1f} on 2   "
              f"x FAISS {many / ms['many_1']:.2f}   {n * count * bits / ms['many_1'] / 1e6:.0f} Gbit/s", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dram", action="store_true")
    parser.add_argument("--executable", help="the Rust half, if it is built already")
    options = parser.parse_args()
    program = options.executable or executable()
    faiss.omp_set_num_threads(1)
    print(f"faiss {faiss.__version__} ({faiss.get_compile_options().strip()})")
    equal(program)
    for bits in (64, 256, 1024):
        timed(program, bits, 1_000_000, 100, options.rounds)
    if options.dram:
        timed(program, 256, 10_000_000, 1, options.rounds, batch=False)


if __name__ == "__main__":
    main()
