#!/usr/bin/env bash
# build.sh OUT_DIR: the page as static files, for any server: `python3 -m http.server --directory OUT_DIR`. Needs rustup's wasm32-unknown-unknown.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(realpath ../../target)}
# Every browser with WebGPU has these instructions, and every other one since 2023.
CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS='-C target-feature=+simd128' \
    cargo build --locked --quiet --release --target wasm32-unknown-unknown
rm -rf "$out"
mkdir -p "$out/data"
cargo run --locked --quiet --manifest-path bindgen/Cargo.toml -- \
    "$CARGO_TARGET_DIR/wasm32-unknown-unknown/release/orthant_browser.wasm" "$out/pkg"
cp page/* "$out"
cd ../data
cp emoji_features_512.npy emoji_labels_512.npy emoji_names_512.json golden_bessel.csv smollm2_kv_layer08.safetensors wordnet_labels_4k.npy \
    wordnet_label_names.json wordnet_minilm_4k.npy "$out/data"
