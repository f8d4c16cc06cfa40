//! Real root file systems, made once by `scripts/fixtures`.

use std::io;
use std::path::PathBuf;

use crate::scratch::source_root;

/// A fixture, by what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fixture {
    /// A minimal Debian with python3, as a directory.
    Directory,
    /// The same as a plain tar file.
    Tar,
    /// The same as an OCI layout of two layers, of which the second one also removes: the
    /// directory `usr/share/doc` is replaced as a whole (opaque), `etc/motd` is gone, and
    /// `etc/inlay-layer` is new. The tag is `test`.
    OciLayout,
    /// A Debian that work is done in: git, make, gcc, sqlite3, python3 with venv, node and npm.
    Sandboxes,
    /// A Debian with python3 and PostgreSQL.
    Postgres,
    /// Packages as pip and npm download them: bottle and click in `wheels`, ms and semver in `npm`.
    Packages,
}

/// Where a fixture is. Fails, saying how to make it, if it has not been made.
pub fn find(fixture: Fixture) -> io::Result<PathBuf> {
    let (name, make) = match fixture {
        Fixture::Directory => ("debian-python", "scripts/fixtures"),
        Fixture::Tar => ("debian-python.tar", "scripts/fixtures"),
        Fixture::OciLayout => ("debian-python-oci", "scripts/fixtures"),
        Fixture::Sandboxes => ("sandboxes", "scripts/fixtures sandboxes"),
        Fixture::Postgres => ("postgres", "scripts/fixtures postgres"),
        Fixture::Packages => ("sandboxes-packages", "scripts/fixtures sandboxes"),
    };
    let path = source_root().join("target/fixtures").join(name);
    if path.exists() {
        return Ok(path);
    }
    Err(io::Error::other(format!("{} is missing: run {make}", path.display())))
}
