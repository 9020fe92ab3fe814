// Fragments of matrices.wgsl as cooperative matrices: loaded, multiplied and stored by a subgroup of 32 as a whole. Whichever invocations a subgroup has:
// it takes the rows of its own number, and all that passes between fragments and rows goes through workgroup memory.
// T and the types of fragments: cooperative_16.wgsl or cooperative_8.wgsl.

var<workgroup> halves: array<f16, HALVES>;

fn put_pair(at: u32, bits: u32) {
    // Exact: they come from f16. naga's bitcast knows no vec2<f16>.
    let pair = vec2<f16>(unpack2x16float(bits));
    halves[at] = pair.x;
    halves[at + 1u] = pair.y;
}

// [row][k] in memory.
fn load_a(at: u32, stride: u32) -> FragmentA {
    return coopLoadT<FragmentA>(&halves[at], stride);
}

// [column][k] in memory: keys.
fn load_keys(at: u32, stride: u32) -> FragmentB {
    return coopLoad<FragmentB>(&halves[at], stride);
}

// [k][column] in memory: values.
fn load_values(at: u32, stride: u32) -> FragmentB {
    return coopLoadT<FragmentB>(&halves[at], stride);
}

fn load_c(at: u32) -> FragmentC {
    return coopLoadT<FragmentC>(&scores[at], SS);
}

fn store_c(fragment: FragmentC, at: u32) {
    coopStoreT(fragment, &scores[at], SS);
}

fn multiply_add(a: FragmentA, b: FragmentB, c: FragmentC) -> FragmentC {
    return coopMultiplyAdd(a, b, c);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) team: u32,
) {
    attend(group, lane, team);
}
