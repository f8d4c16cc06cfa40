//! The product.

pub mod import;
