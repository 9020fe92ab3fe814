// Fragments of 16 x 16 x 16: NVIDIA, RDNA 3, and others on Vulkan.

const T: u32 = 16u;
alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;
