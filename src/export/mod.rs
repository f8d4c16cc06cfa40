//! Gives a snapshot back: as a tar archive, a directory, or an OCI image layout.

mod content;
mod cursor;
mod dir;
mod error;
mod meta;
mod oci;
mod pax;
mod staging;
mod tar;
mod target;
mod walk;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
pub(crate) mod testing;
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
pub(crate) use staging::StagedFile;
pub use target::Target;

/// What is exported, and how.
#[derive(Clone, Copy)]
pub struct Export<'a> {
    /// The snapshot. It is not trusted.
    pub index: &'a Index,
    /// Where the files' bytes come from. Asked for one range after another, in the order in which
    /// a walk by name meets the files.
    pub bytes: &'a dyn FileBytes,
    /// Told of every object.
    pub progress: &'a dyn Progress,
    /// How an image's layer is compressed; other targets are not.
    pub compression: LayerCompression,
}

/// What an export has written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of objects, the root's among them.
    pub entries: u64,
    /// Bytes of contents, without holes.
    pub bytes: u64,
    /// What was left out or could not be made as it is in the snapshot.
    pub warnings: Warnings,
}

impl Export<'_> {
    /// Writes the snapshot to `target`. Either all of it is there afterwards, but for what the
    /// warnings name, or nothing; standard output alone can have got a part.
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

/// A file that is written through a buffer.
fn buffered(file: &File) -> BufWriter<&File> {
    BufWriter::with_capacity(BUFFER_LEN, file)
}
