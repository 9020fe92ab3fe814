"""kappa of a von Mises-Fisher fit against a high-precision solve and scipy.stats.vonmises_fisher.fit, on .npy files of rows.

    python -m venv venv && venv/bin/pip install numpy scipy mpmath
    cargo build --release --features cli
    venv/bin/python benches/peers/vmf_kappa.py target/release/orthant ROWS.npy [ROWS.npy ...]

Each file raw and centred (mean subtracted, rows normalised again). R is summed here in f64 from f64 unit rows; the reference solves
I_{d/2}(kappa) / I_{d/2-1}(kappa) = R in 50 digits, the ratio by its continued fraction (DLMF 10.33.1), by Newton steps until they vanish.
"""
import json, subprocess, sys, tempfile, time, warnings
import mpmath, numpy as np
from scipy import stats

mpmath.mp.dps = 50


def ratio(v, x):
    """I_{v+1}(x) / I_v(x), modified Lentz."""
    tiny = mpmath.mpf(10) ** -90
    f = c = tiny
    d = mpmath.mpf(0)
    k = 0
    while True:
        k += 1
        b = 2 * (v + k) / x
        d = 1 / (b + d)
        c = b + 1 / c
        step = c * d
        f *= step
        if abs(step - 1) < mpmath.mpf(10) ** -48:
            return f


def reference(d, length):
    """kappa with A_d(kappa) = R."""
    v = mpmath.mpf(d) / 2 - 1
    length = mpmath.mpf(length)
    kappa = length * (d - length**2) / (1 - length**2)
    for _ in range(60):
        a = ratio(v, kappa)
        step = (length - a) / (1 - a * a - (d - 1) * a / kappa)
        kappa += step
        if abs(step) < kappa * mpmath.mpf(10) ** -40:
            break
    return kappa


def main(orthant, files):
    print("| rows | frame | R | kappa, 50 digits of this R | orthant | relative difference | SciPy | seconds: orthant, SciPy |")
    print("|---|---|---|---|---|---|---|---|")
    for file in files:
        raw = np.load(file).astype(np.float64)
        raw /= np.linalg.norm(raw, axis=1, keepdims=True)
        centred = raw - raw.mean(axis=0)
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        for frame, rows in (("raw", raw), ("centred", centred)):
            n, d = rows.shape
            length = np.linalg.norm(rows.sum(axis=0, dtype=np.longdouble)) / n
            with tempfile.NamedTemporaryFile(suffix=".npy") as near:
                np.save(near, rows)
                near.flush()
                fit = json.loads(subprocess.check_output([orthant, "vmf", "fit", near.name, "--device", "cpu", "--json"]))
            ours = fit["components"][0]["kappa"]
            exact = reference(d, mpmath.mpf(float(length)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                start = time.perf_counter()
                try:
                    theirs = f"{stats.vonmises_fisher.fit(rows)[1]:.6g}"
                except Exception as error:  # a failure is a result here
                    theirs = type(error).__name__
                seconds = time.perf_counter() - start
            difference = float(abs(ours - exact) / exact)
            print(f"| {n} x {d} | {frame} | {float(length):.6g} | {mpmath.nstr(exact, 12)} | {ours:.12g} | {difference:.1e} | {theirs} | {fit['seconds']:.3f}, {seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
