//! Sizes, options and elements drawn from bytes, be they proptest's or a fuzzer's; behind the last byte from a generator that they seed.

use ndarray::{Array, Dimension, ShapeBuilder};

pub struct Draw<'a> {
    bytes: &'a [u8],
    state: u64,
}

impl<'a> Draw<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let state = bytes
            .iter()
            .fold(0x9e37_79b9_7f4a_7c15, |state: u64, &byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Self { bytes, state }
    }

    pub fn byte(&mut self) -> u8 {
        if let Some((&first, rest)) = self.bytes.split_first() {
            self.bytes = rest;
            return first;
        }
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 56) as u8
    }

    /// 0 to `n` - 1.
    pub fn below(&mut self, n: usize) -> usize {
        let wide = if n > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (wide + usize::from(self.byte())) % n.max(1)
    }

    pub fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// True once in `n`.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// An axis: mostly 1 to `most`, sometimes 0.
    pub fn axis(&mut self, most: usize) -> usize {
        if self.once_in(16) { 0 } else { 1 + self.below(most) }
    }

    /// `size`, or rarely another.
    pub fn near(&mut self, size: usize) -> usize {
        match self.below(40) {
            0 => size + 1,
            1 => size.saturating_sub(1),
            2 => 0,
            _ => size,
        }
    }

    /// A number that an option may be given, sensible or not.
    pub fn number(&mut self) -> usize {
        match self.below(12) {
            0 => 0,
            1 => usize::MAX,
            2 => usize::MAX / 2,
            3 => 1 << 32,
            4 => 1 << 62,
            5 => 1 << 20,
            6 => self.below(1000),
            _ => 1 + self.below(8),
        }
    }

    /// One that is not so large that a sensible call would take long.
    pub fn small_number(&mut self) -> usize {
        match self.below(6) {
            0 => 0,
            1 => self.below(300),
            _ => 1 + self.below(8),
        }
    }

    /// Between -1 and 1.
    pub fn unit(&mut self) -> f64 {
        (f64::from(self.byte()) + f64::from(self.byte()) / 256.0) / 128.0 - 1.0
    }

    /// A number as an option may be given it, sensible or not.
    pub fn real(&mut self) -> f64 {
        const SPECIAL: [f64; 16] = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            0.0,
            -0.0,
            1e-320,
            f64::MIN_POSITIVE,
            f64::MAX,
            -f64::MAX,
            1e-30,
            1e30,
            65504.0,
            65520.0,
            1e12,
            f64::EPSILON,
            1.0,
        ];
        match self.below(4) {
            0 => self.of(&SPECIAL),
            1 => 100.0 * self.unit(),
            _ => self.unit().abs(),
        }
    }

    /// Elements of a tensor: all sensible, or a few of them as [`Draw::real`] has them, or all 0, or all alike.
    pub fn elements(&mut self, n: usize) -> Vec<f64> {
        match self.below(12) {
            0 => vec![0.0; n],
            1 => vec![self.unit(); n],
            2 => (0..n).map(|_| 100.0 * self.unit()).collect(),
            3 => (0..n).map(|_| if self.once_in(8) { self.real() } else { self.unit() }).collect(),
            _ => (0..n).map(|_| self.unit()).collect(),
        }
    }

    pub fn array<D: Dimension>(&mut self, shape: impl ShapeBuilder<Dim = D>) -> Array<f64, D> {
        let shape = shape.into_shape_with_order();
        let elements = self.elements(shape.size());
        Array::from_shape_vec(shape, elements).unwrap()
    }

    pub fn singles<D: Dimension>(&mut self, shape: impl ShapeBuilder<Dim = D>) -> Array<f32, D> {
        self.array(shape).mapv(|x| x as f32)
    }
}
