//! What is fuzzed, as plain functions of bytes: the fuzz targets call them, and so does the test
//! that replays the corpus. They must not panic, whatever the bytes are.

pub(crate) mod group;
pub(crate) mod image;
pub(crate) mod index;
pub(crate) mod packed;
pub(crate) mod profile;
pub(crate) mod tar;
pub(crate) mod toc;
