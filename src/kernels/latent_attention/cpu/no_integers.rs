//! As `integers`, where a processor has no such instructions: never asked for anything.

use crate::kv::latents::SetLayout;

pub(super) fn available() -> bool {
    false
}

#[derive(Default)]
pub(super) struct Scratch;

#[derive(Default)]
pub(super) struct Sums;

#[allow(clippy::too_many_arguments)]
pub(super) fn scores(
    _: &SetLayout,
    _: &[u32],
    _: &[f32],
    _: usize,
    _: usize,
    _: &mut [f32],
    _: usize,
    _: &mut Scratch,
) {
    unreachable!("not available")
}

impl Sums {
    pub(super) fn new(_: &SetLayout, _: usize) -> Self {
        Self
    }
    pub(super) fn fade(&mut self, _: &[f32]) {}
    pub(super) fn add(&mut self, _: &SetLayout, _: &[&[u32]], _: &[f32], _: usize, _: usize, _: &mut Scratch) {
        unreachable!("not available")
    }
    pub(super) fn finish(&self, _: &SetLayout, _: usize, _: &mut [f32], _: usize) {}
}
