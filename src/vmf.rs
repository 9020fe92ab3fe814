//! von Mises-Fisher distributions.
