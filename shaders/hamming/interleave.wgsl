// Codes from rows into groups of 64, word by word: word w of code i goes to (i / 64) * 64 words + w * 64 + i % 64, so that neighbouring invocations of a
// search read neighbouring words. One invocation a word; a load and a store.

struct Params {
    codes: u32,
    words: u32,
    first: u32,      // place of code 0 in the bound groups
    groups_x: u32,
    in_offset: u32,  // words into the bound window
    out_offset: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;       // (codes, words)
@group(0) @binding(2) var<storage, read_write> out: array<u32>;  // (groups, words, 64)

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * params.groups_x + group.x) * 256u + lane;
    if index >= params.codes * params.words {
        return;
    }
    let code = params.first + index / params.words;
    let word = index % params.words;
    out[params.out_offset + ((code / 64u) * params.words + word) * 64u + code % 64u] = rows[params.in_offset + index];
}
