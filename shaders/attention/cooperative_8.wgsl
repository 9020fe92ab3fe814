// Fragments of 8 x 8 x 8: Metal's simdgroup matrices.

const T: u32 = 8u;
alias FragmentA = coop_mat8x8<f16, A>;
alias FragmentB = coop_mat8x8<f16, B>;
alias FragmentC = coop_mat8x8<f32, C>;
