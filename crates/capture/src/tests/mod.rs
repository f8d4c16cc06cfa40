//! Tests captures of real overlays. They need root.

mod features;
mod kernel;
mod still;
mod world;
