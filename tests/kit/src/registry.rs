//! A container registry (Debian's `docker-registry`) on loopback.

use std::fs;
use std::io;
use std::net::SocketAddr;

use tempfile::TempDir;

use crate::http;
use crate::process::{Server, find_program, free_addresses, with_retries};
use crate::scratch::scratch;
use crate::warm::warm;

/// The user whom a registry with passwords knows.
pub const USER: &str = "inlay-test";
/// That user's password.
pub const PASSWORD: &str = "inlay-test-password";
/// The password as `htpasswd -B` writes it: the only kind that the registry takes.
const PASSWORD_HASH: &str = "$2b$04$mBdajGGYzf1XbnlAYJ/bzeO2PbqyUJFDiD3E5YvjX54vzmbQFfpKm";

/// Who may use a registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Everybody.
    Open,
    /// [`USER`] with [`PASSWORD`], by basic authentication.
    Password,
}

/// A running registry. Dropping it ends the process and removes its files.
#[derive(Debug)]
pub struct Registry {
    // Dropped before the directory that it writes to.
    server: Server,
    address: SocketAddr,
    scratch: TempDir,
}

impl Registry {
    /// Starts an empty registry and waits until it takes requests.
    pub fn start(access: Access) -> io::Result<Self> {
        with_retries(|| Self::try_start(access))
    }

    fn try_start(access: Access) -> io::Result<Self> {
        let scratch = scratch()?;
        let data = scratch.path().join("data");
        fs::create_dir(&data)?;
        let [address] = free_addresses()?;
        let authentication = if access == Access::Password {
            let passwords = scratch.path().join("htpasswd");
            fs::write(&passwords, format!("{USER}:{PASSWORD_HASH}\n"))?;
            format!("auth: {{htpasswd: {{realm: test, path: '{}'}}}}\n", passwords.display())
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '{address}'}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n{authentication}",
            data.display()
        );
        let file = scratch.path().join("config.yml");
        fs::write(&file, config)?;
        let arguments = ["serve".into(), file.display().to_string()];
        let log = scratch.path().join("log");
        let mut server = Server::start(&find_program("docker-registry")?, &arguments, &log)?;
        server.wait_until(|| matches!(http::status("GET", address, "/v2/", ""), Ok(200 | 401)))?;
        Ok(Self { server, address, scratch })
    }

    /// Where the registry is; image references begin with it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads its files into the page cache, and says how many bytes that were.
    pub fn warm(&self) -> io::Result<u64> {
        warm(self.scratch.path())
    }

    /// The server process's id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}
