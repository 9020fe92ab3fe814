// From the cosines of a row with K mean directions to its shares: term_k = bias_k - kappa_k (1 - cos_k), where bias_k
// holds ln weight + ln C + kappa less their largest (in f64 on the host), so that no large numbers cancel here.
//   log_density = ln sum exp(term), best = max term, label = the first of the largest, shares[k] = weight exp(term_k - log_density)
// One workgroup a row; maximum, position and sum by trees in workgroup memory. Two loads, a store and an exp an element.

struct Params {
    rows: u32,
    components: u32,
    cosines_offset: u32, // elements into the bound windows
    shares_offset: u32,
    weights_offset: u32,
    densities_offset: u32, // in rows
    hard: u32,           // 1: all of a row to its best component
    weighted: u32,       // 0: every row weighs 1
    groups_x: u32,
    labels_offset: u32,
    scores_offset: u32,
    reference: f32,  // what the host took off all biases: added to scores
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> components: array<vec2<f32>>;     // (K): kappa, bias
@group(0) @binding(2) var<storage, read> weights: array<f32>;              // (rows), or anything if not weighted
@group(0) @binding(3) var<storage, read> cosines: array<f32>;              // (rows, K)
@group(0) @binding(4) var<storage, read_write> shares: array<f32>;         // (rows, K)
@group(0) @binding(5) var<storage, read_write> densities: array<vec4<f32>>; // (rows): log_density, best, label, weight
@group(0) @binding(6) var<storage, read_write> best: array<u32>;     // (rows): label
@group(0) @binding(7) var<storage, read_write> scores: array<f32>;         // (rows): reference + log_density

var<workgroup> values: array<f32, WORKGROUP>;
var<workgroup> labels: array<u32, WORKGROUP>;

fn term(at: u32, component: u32) -> f32 {
    let parameters = components[component];
    return parameters.y - parameters.x * (1.0 - cosines[at]);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * params.groups_x + group.x;
    let inside = row < params.rows;
    let count = select(0u, params.components, inside);
    let begin = params.cosines_offset + row * params.components;

    var largest = -1e38;
    var label = 0u;
    for (var k = lane; k < count; k += WORKGROUP) {
        let value = term(begin + k, k);
        if value > largest {
            largest = value;
            label = k;
        }
    }
    values[lane] = largest;
    labels[lane] = label;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            let other = values[lane + half];
            if other > values[lane] || (other == values[lane] && labels[lane + half] < labels[lane]) {
                values[lane] = other;
                labels[lane] = labels[lane + half];
            }
        }
        workgroupBarrier();
    }
    largest = values[0];
    label = labels[0];
    workgroupBarrier();
    var sum = 0.0;
    for (var k = lane; k < count; k += WORKGROUP) {
        sum += exp_f32(term(begin + k, k) - largest);
    }
    values[lane] = sum;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            values[lane] += values[lane + half];
        }
        workgroupBarrier();
    }
    sum = values[0];
    if !inside {
        return;
    }
    var weight = 1.0;
    if params.weighted == 1u {
        weight = weights[params.weights_offset + row];
    }
    if lane == 0u {
        let log_density = largest + log_f32(sum);
        densities[params.densities_offset + row] = vec4(log_density, largest, f32(label), weight);
        best[params.labels_offset + row] = label;
        scores[params.scores_offset + row] = params.reference + log_density;
    }
    for (var k = lane; k < count; k += WORKGROUP) {
        var share = exp_f32(term(begin + k, k) - largest) / sum;
        if params.hard == 1u {
            share = select(0.0, 1.0, k == label);
        }
        shares[params.shares_offset + row * params.components + k] = weight * share;
    }
}
