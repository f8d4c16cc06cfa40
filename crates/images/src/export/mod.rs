//! Exports a snapshot as a tar archive, a directory, or an OCI image layout.

mod content;
mod cursor;
mod dir;
mod error;
mod meta;
mod oci;
pub mod pax;
mod staging;
mod tar;
mod target;
mod walk;

#[cfg(test)]
mod hostile_tests;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use inlay_store::format::Index;

use crate::import::{Phase, Progress};

pub use content::FileBytes;
pub use error::{CopyError, ExportError, Omission, Warning, Warnings};
pub use oci::LayerCompression;
pub use staging::StagedFile;
pub use target::Target;

/// Parameters of an export.
#[derive(Clone, Copy)]
pub struct Export<'a> {
    /// Index of the snapshot, untrusted.
    pub index: &'a Index,
    /// Source of file contents. Ranges are requested one after another, in the order of a walk by
    /// name.
    pub bytes: &'a dyn FileBytes,
    /// Notified of every object.
    pub progress: &'a dyn Progress,
    /// Compression of an image's layer; other targets are not compressed.
    pub compression: LayerCompression,
}

/// Summary of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of names, including the root.
    pub entries: u64,
    /// Bytes of file contents, without holes.
    pub bytes: u64,
    /// Objects omitted or altered.
    pub warnings: Warnings,
}

impl Export<'_> {
    /// Writes the snapshot to `target`. All or nothing: on success the target has everything but
    /// the warned omissions, on failure nothing. Only standard output may have received a part.
    pub fn run(&self, target: &Target) -> Result<Report, ExportError> {
        self.progress.phase(Phase::Exporting, &target.to_string());
        match target {
            Target::Stdout => {
                let mut out = BufWriter::with_capacity(BUFFER_LEN, io::stdout().lock());
                tar::write(self, tar::Purpose::Archive, &mut out)
            }
            Target::Tar(path) => self.tar_file(path),
            Target::Dir(path) => dir::write(self, path),
            Target::Oci(path) => oci::write(self, path),
        }
    }

    fn tar_file(&self, path: &Path) -> Result<Report, ExportError> {
        let staged = StagedFile::new(path)?;
        let report = {
            let mut out = buffered(staged.file());
            tar::write(self, tar::Purpose::Archive, &mut out)?
        };
        staged.commit()?;
        Ok(report)
    }
}

const BUFFER_LEN: usize = 256 << 10;

/// Wraps a file in a buffered writer.
fn buffered(file: &File) -> BufWriter<&File> {
    BufWriter::with_capacity(BUFFER_LEN, file)
}
