//! Defines the progress reports of imports and exports.

/// Phase of an import or export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Requesting an image's manifest and configuration.
    Resolving,
    /// Downloading a layer.
    Downloading,
    /// Reading a directory, an archive or a layer into the tree.
    Reading,
    /// Reading files of a layer in a second pass, after a hard link has made them visible.
    Revisiting,
    /// Exporting a snapshot.
    Exporting,
}

/// Receives the progress of an import or export. Called for every file, so it must be cheap and
/// must not block.
pub trait Progress: Sync {
    /// `phase` begins for `what`, the name of a layer or a source.
    fn phase(&self, phase: Phase, what: &str);

    /// `objects` more entries and `bytes` more bytes of contents are done.
    fn advance(&self, objects: u64, bytes: u64);

    /// `bytes` more are expected in this phase.
    fn expect(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// Discards all reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn phase(&self, _: Phase, _: &str) {}
    fn advance(&self, _: u64, _: u64) {}
}
