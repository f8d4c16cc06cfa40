//! Supplies files to a start, by each method.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::adapter::Adapter;
use super::error::BenchError;
use super::inlay::{Fetched, InlayHost, Loading};
use super::interrupt::Interrupt;
use super::parts::Part;
use super::root::{bind, end_mount};

/// Whether a supply's directories are writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gives {
    /// Writable: needs no overlay.
    Writable,
    /// Read-only: needs an overlay.
    ReadOnly,
}

/// A host in its role as the supplier of a start's files.
pub(super) trait Supply {
    fn gives(&self) -> Gives;
    /// Makes a part visible at a directory. Counts towards the time of the start.
    fn up(&mut self, part: &Part, point: &Path) -> Result<(), BenchError>;
    /// Unmounts a part. The host keeps the data it has cached.
    fn down(&mut self, part: &Part, point: &Path) -> Result<(), BenchError>;
    /// Blocks until the host has prefetched everything it will of the mounted parts.
    fn settle(&mut self) -> Result<(), BenchError>;
    /// Returns the traffic so far if this host counts it, else zeros.
    fn fetched(&self) -> Result<Fetched, BenchError>;
    /// Stops the host and removes its state.
    fn end(self: Box<Self>) -> Result<(), BenchError>;
}

/// Bind mounts of a directory on the local disk.
pub(super) struct Native;

/// A host of inlay.
pub(super) struct OfInlay<'a> {
    pub(super) host: InlayHost,
    pub(super) loading: Loading<'a>,
    pub(super) limit: Duration,
}

/// A host of an adapter.
pub(super) struct OfAdapter<'a> {
    pub(super) adapter: &'a Adapter,
    pub(super) host: PathBuf,
    pub(super) limit: Duration,
    pub(super) interrupt: Interrupt,
}

impl Supply for Native {
    fn gives(&self) -> Gives {
        Gives::ReadOnly
    }

    fn up(&mut self, part: &Part, point: &Path) -> Result<(), BenchError> {
        bind(&part.directory, point)
    }

    fn down(&mut self, _part: &Part, point: &Path) -> Result<(), BenchError> {
        end_mount(point)
    }

    fn settle(&mut self) -> Result<(), BenchError> {
        Ok(())
    }

    fn fetched(&self) -> Result<Fetched, BenchError> {
        Ok(Fetched::default())
    }

    fn end(self: Box<Self>) -> Result<(), BenchError> {
        Ok(())
    }
}

impl Supply for OfInlay<'_> {
    fn gives(&self) -> Gives {
        Gives::Writable
    }

    fn up(&mut self, part: &Part, point: &Path) -> Result<(), BenchError> {
        self.host.mount(&part.name, point, &self.loading, self.limit)
    }

    fn down(&mut self, _part: &Part, point: &Path) -> Result<(), BenchError> {
        self.host.umount(point)
    }

    fn settle(&mut self) -> Result<(), BenchError> {
        self.host.wait_until_loaded().map(drop)
    }

    fn fetched(&self) -> Result<Fetched, BenchError> {
        self.host.fetched()
    }

    fn end(self: Box<Self>) -> Result<(), BenchError> {
        self.host.end()
    }
}

impl Supply for OfAdapter<'_> {
    fn gives(&self) -> Gives {
        Gives::ReadOnly
    }

    fn up(&mut self, part: &Part, point: &Path) -> Result<(), BenchError> {
        fs::create_dir_all(&self.host).map_err(BenchError::path("make", &self.host))?;
        self.adapter.up(part, point, &self.host, self.limit, &self.interrupt)
    }

    fn down(&mut self, part: &Part, point: &Path) -> Result<(), BenchError> {
        self.adapter.down(part, point, &self.host)
    }

    fn settle(&mut self) -> Result<(), BenchError> {
        Ok(())
    }

    fn fetched(&self) -> Result<Fetched, BenchError> {
        Ok(Fetched::default())
    }

    fn end(self: Box<Self>) -> Result<(), BenchError> {
        self.adapter.clean(&self.host)?;
        match fs::remove_dir_all(&self.host) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(BenchError::path("remove", &self.host)(error))
            }
            _ => Ok(()),
        }
    }
}
