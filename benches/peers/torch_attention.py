"""orthant's attention against PyTorch's scaled_dot_product_attention, interleaved in one run.

    pip install torch numpy
    python benches/peers/torch_attention.py [--rounds R] [--binary PATH]

Each round times PyTorch (f32, one thread) and then orthant on the same tensors, so that a change of the machine's clock meets
both. Reported: milliseconds, medians over the rounds of each round's best; PyTorch's time over orthant's; orthant's rate
(GFLOP/s of the scores that count; for decode GB/s of keys and values, beside the rate at which this machine reads memory); what
two threads gain. Outputs are compared first.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

ROOT = Path(__file__).resolve().parents[2]
# Name, batch, heads of q and of k, lengths of q and k, d, causal.
CASES = [
    ("prefill 512, d 64", 1, 8, 8, 512, 512, 64, 0),
    ("the same, causal", 1, 8, 8, 512, 512, 64, 1),
    ("prefill 2048, d 64", 1, 8, 8, 2048, 2048, 64, 0),
    ("32/8 heads, 512, d 128", 1, 32, 8, 512, 512, 128, 0),
    ("decode 32/8 heads, 4096, d 128", 1, 32, 8, 1, 4096, 128, 0),
    ("AutoInt, 1024 x 2 heads x 39, d 16", 1024, 2, 2, 39, 39, 16, 0),
]


def executable():
    """Builds the Rust half and returns its path."""
    command = ["cargo", "bench", "--bench", "peer_attention", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    built = [json.loads(line) for line in lines]
    return next(line["executable"] for line in built if line.get("target", {}).get("name") == "peer_attention")


def best(call, budget):
    begin, least = time.perf_counter(), float("inf")
    while time.perf_counter() - begin < budget:
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def read_bandwidth(budget):
    """Bytes a second that one thread reads: a sum over 256 MB."""
    numbers = torch.ones(1 << 26)
    return numbers.nbytes / best(numbers.sum, budget)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--binary", help="a built peer_attention")
    options = parser.parse_args()
    ours = options.binary or executable()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    environment = os.environ | {"RAYON_NUM_THREADS": "1"}
    print(f"{'ms':36} torch |    f32     f16  torch/f32 | rate | 2 threads: f32   f16")
    for name, batch, q_heads, kv_heads, q_len, kv_len, d, causal in CASES:
        q = torch.randn(batch, q_heads, q_len, d)
        k, v = (torch.randn(batch, kv_heads, kv_len, d) for _ in range(2))

        def peer():
            # Never the other way round: query heads share keys, which older flash kernels have copied.
            return scaled_dot_product_attention(q, k, v, is_causal=bool(causal), enable_gqa=q_heads != kv_heads)

        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            tensors = Path(folder) / "tensors"
            np.concatenate([x.numpy().ravel() for x in (q, k, v)]).astype("<f4").tofile(tensors)
            sizes = [batch, q_heads, kv_heads, q_len, kv_len, d, causal, options.seconds]
            command = [str(part) for part in [ours, tensors, *sizes]]
            rounds = []
            for _ in range(options.rounds):
                row = {"torch": best(peer, options.seconds), "read": read_bandwidth(0.1)}
                row |= json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
                )
                rounds.append(row)
            values = np.fromfile(f"{tensors}.values", "<f4").reshape(q.shape)
            error = np.abs(values - peer().numpy()).max()
        # Both are within 1e-6 of sums of weights that add up to 1 and values of at most 5.
        assert error < 2e-5, f"{name}: outputs differ by {error:.1e}"
        median = {key: np.median([row[key] for row in rounds]) for key in rounds[0]}
        if q_len == 1:
            read = (k.nbytes + v.nbytes) / median["f32_1"]
            rate = f"{read / 1e9:.1f} of {median['read'] / 1e9:.1f} GB/s"
        else:
            rate = f"{4 * q.numel() * kv_len / (2 if causal else 1) / median['f32_1'] / 1e9:.1f} GFLOP/s"
        gain = {kind: median[f"{kind}_1"] / median[f"{kind}_2"] for kind in ("f32", "f16")}
        print(
            f"{name:36}{1e3 * median['torch']:6.2f} |{1e3 * median['f32_1']:7.2f}{1e3 * median['f16_1']:8.2f}"
            f"{median['torch'] / median['f32_1']:11.2f} | {rate} | {gain['f32']:.2f}x {gain['f16']:.2f}x | within {error:.0e}"
        )


if __name__ == "__main__":
    main()
