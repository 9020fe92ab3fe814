"""orthant's interacting_layer against PyTorch on the CPU, interleaved in one run.

    pip install torch numpy
    python benches/peers/torch_interacting.py [--rounds R]

AutoInt's usual shape: batch 1024, 39 fields of 16, 2 heads of 16, residual and ReLU. Each round times PyTorch on one thread (the fused
`scaled_dot_product_attention`, and the einsums that AutoInt's implementations write out), then orthant on one thread and on two. Reported: the medians
over the rounds of the best time of each. Outputs are compared first.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
BATCH, FIELDS, WIDTH, HEADS, DIM = 1024, 39, 16, 2, 16


def executable():
    """Builds the Rust half and returns its path."""
    command = ["cargo", "bench", "--bench", "peer_interacting", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    built = [json.loads(line) for line in lines]
    return next(line["executable"] for line in built if line.get("target", {}).get("name") == "peer_interacting")


def fused(x, all_four):
    q, k, v, r = (x @ all_four).split(HEADS * DIM, dim=-1)
    q, k, v = (part.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for part in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    return torch.relu(out.transpose(1, 2).flatten(2) + r)


def einsums(x, query, key, value, residual):
    q, k, v = (torch.stack(torch.split(x @ weight, DIM, dim=2)) for weight in (query, key, value))
    weights = torch.softmax(torch.einsum("bnik,bnjk->bnij", q, k), dim=-1)
    out = torch.cat(torch.split(weights @ v, 1), dim=-1).squeeze(0)
    return torch.relu(out + x @ residual)


def best(call, budget=0.5):
    begin, least = time.perf_counter(), float("inf")
    while time.perf_counter() - begin < budget:
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--executable", help="the Rust half, if it is built already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours = options.executable or executable()
    rng = np.random.default_rng(7)
    x = rng.standard_normal((BATCH, FIELDS, WIDTH), dtype="f4")
    matrices = rng.standard_normal((4, WIDTH, HEADS * DIM), dtype="f4") / 4
    tensor, (query, key, value, residual) = torch.from_numpy(x), (torch.from_numpy(part) for part in matrices)
    all_four = torch.cat([query, key, value, residual], dim=1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "tensors"
        np.concatenate([x.ravel(), matrices.ravel()]).astype("<f4").tofile(path)
        rounds = []
        for _ in range(options.rounds):
            row = {"fused": best(lambda: fused(tensor, all_four))}
            row["einsums"] = best(lambda: einsums(tensor, query, key, value, residual))
            row |= json.loads(subprocess.run([ours, path], check=True, capture_output=True, text=True).stdout)
            rounds.append(row)
        values = np.fromfile(f"{path}.values", "<f4").reshape(BATCH, FIELDS, HEADS * DIM)
        for name, theirs in [("fused", fused(tensor, all_four)), ("einsums", einsums(tensor, query, key, value, residual))]:
            error = np.abs(values - theirs.numpy()).max()
            assert error < 1e-4, f"{name}: outputs differ by {error:.1e}"
    median = {key: np.median([row[key] for row in rounds]) * 1e3 for key in rounds[0]}
    for key, milliseconds in median.items():
        print(f"{key:10} {milliseconds:7.2f} ms")
    print(f"one thread: {median['fused'] / median['threads_1']:.2f}x PyTorch fused, {median['einsums'] / median['threads_1']:.2f}x einsums")
    print(f"two threads: {median['threads_1'] / median['threads_2']:.2f}x one")


if __name__ == "__main__":
    main()
