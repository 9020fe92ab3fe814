// gates = sigmoid(GroupNorm(conv1d(strips) + bias)) over strips of `strip` elements, padded with zeros. One workgroup a map and group of the norm:
// the convolution with its sum, then the squares about the mean, then the gates; each invocation comes back to its own elements of `gates`.
// 2 inner taps flops an element and some 20; strips are read inner taps times, from cache; a few KB a map: next to the maps themselves nothing.
// A mean or variance that is not finite is reported in status.

struct Params {
    groups: u32,      // maps * norm_groups
    channels: u32,
    strip: u32,
    norm_groups: u32,
    inner: u32,       // channels of a group of the convolution
    taps: u32,        // odd
    first: u32,       // index of the first map in the whole
    groups_x: u32,
    strips_offset: u32, // elements into the bound window
    gates_offset: u32,
    epsilon: f32,
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> strips: array<f32>;         // (maps, channels, strip)
@group(0) @binding(2) var<storage, read> convolution: array<f32>;    // (channels, inner, taps)
@group(0) @binding(3) var<storage, read> affine: array<f32>;         // bias, gamma, beta: (3, channels)
@group(0) @binding(4) var<storage, read_write> gates: array<f32>;    // (maps, channels, strip)
@group(0) @binding(5) var<storage, read_write> status: array<atomic<u32>>; // [0] not finite: 0xffffffff - the lowest map

var<workgroup> tree: array<f32, 64>;

// The sum of what each invocation brings, to all of them.
fn total(value: f32, lane: u32) -> f32 {
    workgroupBarrier();
    tree[lane] = value;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if lane < half {
            tree[lane] += tree[lane + half];
        }
        workgroupBarrier();
    }
    return tree[0];
}

fn convolved(map: u32, channel: u32, at: u32) -> f32 {
    var sum = affine[channel];
    let from0 = params.strips_offset + (map * params.channels + (channel / params.inner) * params.inner) * params.strip;
    for (var k = 0u; k < params.inner; k++) {
        for (var tap = 0u; tap < params.taps; tap++) {
            let place = at + tap;
            if place >= params.taps / 2u && place - params.taps / 2u < params.strip {
                sum += convolution[(channel * params.inner + k) * params.taps + tap]
                    * strips[from0 + k * params.strip + place - params.taps / 2u];
            }
        }
    }
    return sum;
}

fn finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7fffffffu) < 0x7f800000u;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group.y * params.groups_x + group.x;
    if number >= params.groups {
        return;
    }
    let map = number / params.norm_groups;
    let channels = params.channels / params.norm_groups;
    let channel0 = (number % params.norm_groups) * channels;
    let count = channels * params.strip;
    let begin = params.gates_offset + (map * params.channels + channel0) * params.strip;

    var sum = 0.0;
    for (var at = lane; at < count; at += 64u) {
        let value = convolved(map, channel0 + at / params.strip, at % params.strip);
        gates[begin + at] = value;
        sum += value;
    }
    let mean = total(sum, lane) / f32(count);
    sum = 0.0;
    for (var at = lane; at < count; at += 64u) {
        let apart = gates[begin + at] - mean;
        sum += apart * apart;
    }
    let variance = total(sum, lane) / f32(count);
    if lane == 0u && !(finite(mean) && finite(variance)) {
        atomicMax(&status[0], 0xffffffffu - (params.first + map));
    }
    let scale = inverseSqrt(variance + params.epsilon);
    for (var at = lane; at < count; at += 64u) {
        let channel = channel0 + at / params.strip;
        let normal = (gates[begin + at] - mean) * scale * affine[params.channels + channel] + affine[2u * params.channels + channel];
        gates[begin + at] = 1.0 / (1.0 + exp(clamp(-normal, -87.0, 87.0)));
    }
}
