// Fragments of matrices.wgsl by plain loops, T of 8 or 16, for adapters without cooperative matrices: the same memory at the same places, so that all but
// the loads, products and stores of cooperative.wgsl is what runs there. For tests: it is slow. A fragment of A or B stays where it is in workgroup
// memory and is read by the product; one of C has T T / 32 elements in each of a team's 32 invocations.

struct Place {
    at: u32,
    row: u32,    // from a row of the product to the next, or from a column
    inner: u32,  // along the sum
}
alias FragmentA = Place;
alias FragmentB = Place;
alias FragmentC = array<f32, T * T / 32u>;

var<workgroup> halves: array<u32, HALVES / 2u>; // two in a word
var<private> member: u32;

fn put_pair(at: u32, bits: u32) {
    halves[at / 2u] = bits;
}

fn half_at(at: u32) -> f32 {
    return unpack2x16float(halves[at / 2u])[at % 2u];
}

fn load_a(at: u32, stride: u32) -> FragmentA {
    return Place(at, stride, 1u);
}

fn load_keys(at: u32, stride: u32) -> FragmentB {
    return Place(at, stride, 1u);
}

fn load_values(at: u32, stride: u32) -> FragmentB {
    return Place(at, 1u, stride);
}

fn load_c(at: u32) -> FragmentC {
    var fragment: FragmentC;
    for (var e = 0u; e < T * T / 32u; e++) {
        let place = member + 32u * e;
        fragment[e] = scores[at + place / T * SS + place % T];
    }
    return fragment;
}

fn store_c(fragment: FragmentC, at: u32) {
    var elements = fragment;
    for (var e = 0u; e < T * T / 32u; e++) {
        let place = member + 32u * e;
        scores[at + place / T * SS + place % T] = elements[e];
    }
}

fn multiply_add(a: FragmentA, b: FragmentB, c: FragmentC) -> FragmentC {
    var product = c;
    for (var e = 0u; e < T * T / 32u; e++) {
        let place = member + 32u * e;
        let row = a.at + place / T * a.row;
        let column = b.at + place % T * b.row;
        for (var x = 0u; x < T; x++) {
            product[e] += half_at(row + x * a.inner) * half_at(column + x * b.inner);
        }
    }
    return product;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    member = lane % 32u;
    attend(group, lane, lane / 32u);
}
