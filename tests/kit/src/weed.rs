//! A SeaweedFS server that speaks S3 on loopback.

use std::fs;
use std::io;
use std::net::SocketAddr;

use tempfile::TempDir;

use crate::http;
use crate::process::{Server, find_program, free_addresses, with_retries};
use crate::scratch::scratch;
use crate::warm::warm;

/// The bucket that every server has.
pub const BUCKET: &str = "inlay-test";
/// The id of the key that the server knows.
pub const ACCESS_KEY: &str = "inlay-test-key";
/// The secret part of the key.
pub const SECRET_KEY: &str = "inlay-test-secret";
/// The region that the server is said to be in.
pub const REGION: &str = "us-east-1";

/// A running server. Dropping it ends the process and removes its files.
#[derive(Debug)]
pub struct Weed {
    // Dropped before its sockets and its directory.
    server: Server,
    _sockets: Sockets,
    s3: SocketAddr,
    filer: SocketAddr,
    scratch: TempDir,
}

impl Weed {
    /// Starts a server with one empty bucket and waits until it takes requests.
    pub fn start() -> io::Result<Self> {
        with_retries(Self::try_start)
    }

    fn try_start() -> io::Result<Self> {
        let scratch = scratch()?;
        let data = scratch.path().join("data");
        fs::create_dir(&data)?;
        let identities = scratch.path().join("identities.json");
        fs::write(&identities, identities_json())?;
        let addresses = free_addresses::<8>()?;
        let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc] = addresses;
        let port = |name: &str, address: SocketAddr| format!("-{name}={}", address.port());
        let sockets = Sockets(addresses.map(|address| address.port()));
        let arguments = [
            format!("-logdir={}", scratch.path().display()),
            "server".into(),
            "-ip=127.0.0.1".into(),
            "-ip.bind=127.0.0.1".into(),
            format!("-dir={}", data.display()),
            "-master.telemetry=false".into(),
            "-master.volumeSizeLimitMB=256".into(),
            "-volume.max=50".into(),
            "-volume.preStopSeconds=0".into(),
            "-filer".into(),
            "-s3".into(),
            format!("-s3.config={}", identities.display()),
            // Services that would take fixed ports.
            "-s3.port.iceberg=0".into(),
            "-s3.port.lance=0".into(),
            port("master.port", master),
            port("master.port.grpc", master_grpc),
            port("volume.port", volume),
            port("volume.port.grpc", volume_grpc),
            port("filer.port", filer),
            port("filer.port.grpc", filer_grpc),
            port("s3.port", s3),
            port("s3.port.grpc", s3_grpc),
        ];
        let log = scratch.path().join("log");
        let mut server = Server::start(&find_program("weed")?, &arguments, &log)?;
        // A file that could be written shows that the parts have found each other.
        server.wait_until(|| matches!(http::status("PUT", filer, "/probe", "x"), Ok(201)))?;
        let bucket = format!("/buckets/{BUCKET}/");
        server.wait_until(|| matches!(http::status("POST", filer, &bucket, ""), Ok(201)))?;
        // Without credentials, the answer of a server that is up is "forbidden".
        server.wait_until(|| matches!(http::status("GET", s3, "/", ""), Ok(403)))?;
        Ok(Self { server, _sockets: sockets, s3, filer, scratch })
    }

    /// Where S3 is spoken.
    pub fn address(&self) -> SocketAddr {
        self.s3
    }

    /// Where plain HTTP is spoken: the bucket's objects are below `/buckets/` and its name, and can be
    /// read without a key.
    pub fn filer(&self) -> SocketAddr {
        self.filer
    }

    /// Reads its files into the page cache, and says how many bytes that were.
    pub fn warm(&self) -> io::Result<u64> {
        warm(self.scratch.path())
    }

    /// The server process's id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The environment with which the usual clients reach the bucket, through `address`: the
    /// server's own, or a proxy's.
    pub fn environment(address: SocketAddr) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT_URL", format!("http://{address}")),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
            ("AWS_REGION", REGION.into()),
            ("AWS_ALLOW_HTTP", "true".into()),
        ]
    }
}

/// The unix sockets of a server, one per port. Their directory is not configurable.
/// Dropping it removes them.
#[derive(Debug)]
struct Sockets([u16; 8]);

impl Drop for Sockets {
    fn drop(&mut self) {
        for port in self.0 {
            for part in ["master-grpc", "volume-grpc", "filer", "filer-grpc", "s3", "s3-grpc"] {
                drop(fs::remove_file(format!("/tmp/seaweedfs-{part}-{port}.sock")));
            }
        }
    }
}

fn identities_json() -> String {
    format!(
        r#"{{"identities": [{{
            "name": "test",
            "credentials": [{{"accessKey": "{ACCESS_KEY}", "secretKey": "{SECRET_KEY}"}}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"]
        }}]}}"#
    )
}
