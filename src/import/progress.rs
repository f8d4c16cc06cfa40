//! How an import or an export tells what it has done.

/// What an import or an export is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Asking for the image's manifest and configuration.
    Resolving,
    /// Bringing a layer here.
    Downloading,
    /// Reading a directory, an archive or a layer into the tree.
    Reading,
    /// Reading files of a layer again that only a hard link has shown to be needed.
    Revisiting,
    /// Giving a snapshot back.
    Exporting,
}

/// Told what an import or an export does. Called for every file, so it must be cheap and never wait.
pub trait Progress: Sync {
    /// `phase` begins, for `what`: a layer's or a source's name.
    fn phase(&self, phase: Phase, what: &str);

    /// `objects` more entries and `bytes` more bytes of contents were taken.
    fn advance(&self, objects: u64, bytes: u64);

    /// `bytes` more are known to come in this phase.
    fn expect(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn phase(&self, _: Phase, _: &str) {}
    fn advance(&self, _: u64, _: u64) {}
}
