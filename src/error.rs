//! The one error type: each variant names the place (a kernel or a task), the quantity, what was expected and what came.

/// What orthant's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, without a backend's types in it.
///
/// In every variant `place` is the kernel or task, `quantity` the input or option that was wrong, `expected` what it should have been and `found`
/// what came; `device` is the device as it prints itself.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two shapes that must agree do not.
    #[error("{place}: {quantity} has shape {found:?}, expected {expected}")]
    Shape { place: &'static str, quantity: &'static str, expected: String, found: Vec<usize> },

    /// A value is outside the domain of the function; `index` counts elements (or rows) in row-major order.
    #[error("{place}: {quantity} at index {index} is {found}, expected {expected}")]
    Domain { place: &'static str, quantity: &'static str, index: usize, expected: &'static str, found: String },

    /// An option or argument that is not an element of the data has a value that makes no sense.
    #[error("{place}: {quantity} is {found}, expected {expected}")]
    Argument { place: &'static str, quantity: &'static str, expected: String, found: String },

    /// A column of a table is not what a SQL function takes. Rows count from 0 in the order in which they came to this part of the query.
    #[error("{place}: column {column}{}: {found}, expected {expected}", row.map_or(String::new(), |row| format!(", row {row}")))]
    Column { place: &'static str, column: String, row: Option<usize>, expected: String, found: String },

    /// More than the device, or this computer, can hold or index.
    #[error("{place}: {quantity} needs {needed} bytes, {device} allows {limit}")]
    TooLarge { place: &'static str, quantity: &'static str, needed: u64, limit: u64, device: String },

    /// The device lacks a feature.
    #[error("{place}: {feature} is not supported by {device}")]
    Unsupported { place: &'static str, feature: &'static str, device: String },

    /// Tensors of one call live on different devices.
    #[error("{place}: {quantity} is on {found}, expected {expected}")]
    DeviceMismatch { place: &'static str, quantity: &'static str, expected: String, found: String },

    /// The device had no memory left for a buffer of that size.
    #[error("{place}: out of memory on {device} for {bytes} bytes")]
    OutOfMemory { place: &'static str, bytes: u64, device: String },

    /// The device went away; open it again.
    #[error("{place}: {device} was lost: {reason}")]
    DeviceLost { place: &'static str, device: String, reason: String },

    /// No adapter fits what was asked for.
    #[error("no GPU: {reason}")]
    NoGpu { reason: String },

    /// The driver refused a shader or a command: a defect of orthant or of the driver, please report it.
    #[error("{place}: {device} refused it: {reason}")]
    Backend { place: &'static str, device: String, reason: String },

    /// A file or stream could not be read or written.
    #[error("{what}: {reason}")]
    Io { what: String, reason: String },

    /// A saved model, table or statistic is not what its format asks for.
    #[error("{what}: {reason}")]
    Format { what: &'static str, reason: String },
}
