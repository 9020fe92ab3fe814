//! What `kv` says on stdout: a table for people, an object for machines.

use orthant::kv::{Evaluation, HeadError, Side};
use serde_json::{Value, json};

use crate::cli::args::KvChoice;

pub fn name(side: Side) -> &'static str {
    match side {
        Side::Keys => "k",
        Side::Values => "v",
    }
}

/// What the layers hold together, and would uncompressed.
pub fn bytes(layers: &[Evaluation]) -> (u64, u64) {
    let sum = |of: fn(&Evaluation) -> u64| layers.iter().map(of).sum();
    (sum(|layer| layer.bytes), sum(|layer| layer.bytes_uncompressed))
}

/// One entry a layer, kind and head.
pub fn heads(layers: &[Evaluation]) -> Vec<Value> {
    let of_layer = |layer: &Evaluation| -> Vec<Value> {
        let of_head = |head: &HeadError| {
            json!({
                "layer": layer.layer, "kind": name(head.side), "head": head.head, "rank": head.rank,
                "relative_error": head.relative_error, "bytes": head.bytes,
            })
        };
        layer.heads.iter().map(of_head).collect()
    };
    layers.iter().flat_map(of_layer).collect()
}

/// A line for each head, and one for each layer and for all.
pub fn table(layers: &[Evaluation]) -> String {
    let mut text = format!("{:>5} {:>4} {:>4} {:>5} {:>9} {:>12}\n", "layer", "kind", "head", "rank", "error", "bytes");
    for layer in layers {
        for head in &layer.heads {
            let (kind, error) = (name(head.side), head.relative_error);
            let line = format!(
                "{:>5} {kind:>4} {:>4} {:>5} {error:>9.5} {:>12}\n",
                layer.layer, head.head, head.rank, head.bytes
            );
            text.push_str(&line);
        }
        let (error, bytes) = (layer.relative_error(), layer.bytes);
        text.push_str(&format!("{:>5} {:>4} {:>4} {:>5} {error:>9.5} {bytes:>12}\n", layer.layer, "all", "", ""));
    }
    let (held, uncompressed) = bytes(layers);
    let cut = 100.0 * (1.0 - held as f64 / uncompressed as f64);
    let error = Evaluation::joint_relative_error(layers);
    text.push_str(&format!(
        "\nrelative error of the attention output {error:.5}, {held} bytes in place of {uncompressed} in f16: {cut:.1} % less\n"
    ));
    text
}

/// The cache in a few words: `window 32, 4 sinks, 4 bits`.
pub fn cache(choice: &KvChoice) -> String {
    let sinks = if choice.sinks == 1 { "1 sink".to_string() } else { format!("{} sinks", choice.sinks) };
    format!("{} bits, window {}, {sinks}", choice.bits.count(), choice.window)
}
