//! [`Weighting`] and [`ProjectionOptions`].

/// What error a projection keeps smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Weighting {
    /// That of the rows themselves: principal components (MatryoshkaKV's start).
    Pca,
    /// That of what attention makes of them: of keys the logits q k^T / sqrt(d), by the moments of the queries; of values the output W_o o, by the
    /// attention they get and by W_o where it was given.
    #[default]
    Query,
    /// That of W x for inputs whose channels are scaled by E\[|x|\]^alpha: an activation-aware SVD of W_k or W_v (CSKV's start). Keys in the pre-RoPE frame
    /// only; without a mean.
    Asvd,
}

/// Which projections a calibration gives: [`ProjectionOptions::new`] and changes to it.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectionOptions {
    pub(super) weightings: [Weighting; 2],
    pub(super) joint: [usize; 2],
    pub(super) centred: bool,
    pub(super) alpha: f64,
}

impl Default for ProjectionOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ProjectionOptions {
    /// [`Weighting::Query`] of keys and values, centred, one projection a KV head.
    pub fn new() -> Self {
        Self { weightings: [Weighting::Query; 2], joint: [1; 2], centred: true, alpha: 0.5 }
    }

    /// The weightings of keys and of values.
    pub fn weighting(mut self, keys: Weighting, values: Weighting) -> Self {
        self.weightings = [keys, values];
        self
    }

    /// Whether rows are taken relative to their mean. Default: they are.
    pub fn centred(mut self, centred: bool) -> Self {
        self.centred = centred;
        self
    }

    /// So many consecutive KV heads share a projection; divisors of their number. Default 1; all of them is CSKV's.
    pub fn joint(mut self, keys: usize, values: usize) -> Self {
        self.joint = [keys, values];
        self
    }

    /// The exponent of [`Weighting::Asvd`], 0 to 1. Default 0.5.
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }
}
