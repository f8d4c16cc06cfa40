//! How each method gives a start its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::adapter::Adapter;
use super::error::BenchError;
use super::inlay::{Fetched, InlayHost, Loading};
use super::interrupt::Interrupt;
use super::parts::Part;
use super::root::{bind, end_mount};

/// Whether what a supply gives can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gives {
    /// It can: nothing is put above it.
    Writable,
    /// It can't.
    ReadOnly,
}

/// A host, as far as it gives files to a start.
pub(super) trait Supply {
    fn gives(&self) -> Gives;
    /// Makes a part visible at a directory. This is a part of the start's time.
    fn up(&mut self, part: &Part, point: &Path) -> Result<(), BenchError>;
    /// Takes it away. What the host has got of it stays.
    fn down(&mut self, part: &Part, point: &Path) -> Result<(), BenchError>;
    /// Waits until the host has all that it will load by itself of what is up.
    fn settle(&mut self) -> Result<(), BenchError>;
    /// What came from the store so far, if it is this host that counts it.
    fn fetched(&self) -> Result<Fetched, BenchError>;
    /// Ends the host and removes what it has kept.
    fn end(self: Box<Self>) -> Result<(), BenchError>;
}

/// A directory of the local disk.
pub(super) struct Native;

/// This program.
pub(super) struct OfInlay<'a> {
    pub(super) host: InlayHost,
    pub(super) loading: Loading<'a>,
    pub(super) limit: Duration,
}

/// An adapter.
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
        self.host.wait_until_loaded()
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
