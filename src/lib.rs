//! The product.

pub mod export;
pub mod import;
