//! The product.

pub mod export;
pub mod import;
pub mod mount;
