//! The product.

pub mod content;
pub mod export;
pub mod import;
pub mod mount;
