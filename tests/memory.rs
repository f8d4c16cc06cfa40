//! How much memory the daemon takes for each attached snapshot: next to none, whatever its size.
//!
//! The test of the suite is small. The full one, which takes 4 GB of disk and some minutes:
//! `cargo test --test memory -- --ignored --nocapture`
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::local;
use inlay_mounts::{MountFlags, WantedView};
use inlay_store::format::Timestamp;
use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::ids::{BlobId, Digest, IndexDigest, Kind, SnapshotId};
use inlay_store::pack::{
    BlobStore, FileSink, KnownChunks, PackError, PackOptions, PackedGroups, Packer,
};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};
use inlay_testkit::process::Server;
use inlay_testkit::scratch;
use inlayfs::daemon::{
    CacheUse, Client, LoadOptions, MOUNTS, MountInfo, MountOrigin, MountRequest, Paths, StoreRef,
};

/// What a thousand snapshots may take.
const RESIDENT_MAX: u64 = 256 << 20;
const LIMIT: Duration = Duration::from_mins(5);
/// Files in a directory.
const FAN_OUT: u32 = 100;

struct Discard;

impl BlobStore for Discard {
    fn put(&mut self, _: BlobId, _: Vec<u8>) -> Result<(), PackError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

/// A tree of so many files, each with contents of its own.
fn tree(files: u32) -> (Tree, PackedGroups) {
    let meta = |number: u32| {
        let mtime = Timestamp { secs: i64::from(number), nanos: 0 };
        Meta { perm: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
    };
    let options = PackOptions { level: 1, ..PackOptions::default() };
    let mut packer = Packer::new(options, KnownChunks::new(), Box::new(Discard)).unwrap();
    let mut tree = Tree::new(TreeLimits::default());
    let mut dir = NodeId::ROOT;
    let mut bytes = vec![0u8; 600];
    for file in 0..files {
        if file % FAN_OUT == 0 {
            let name = format!("package-{:05}", file / FAN_OUT);
            let kind = NodeKind::Directory;
            dir = tree.insert(NodeId::ROOT, name.as_bytes(), meta(file), kind).unwrap();
        }
        bytes[..4].copy_from_slice(&file.to_le_bytes());
        let size = bytes.len() as u64;
        let whole = 0..size;
        let content =
            packer.add_file(size, std::slice::from_ref(&whole), &mut bytes.as_slice()).unwrap();
        let name = format!("module_{:03}.py", file % FAN_OUT);
        tree.insert(dir, name.as_bytes(), meta(file), NodeKind::Regular { size, content }).unwrap();
    }
    (tree, packer.finish().unwrap())
}

/// Puts the indexes of so many snapshots, all different, where the state keeps them.
fn indexes(state: &Path, snapshots: u32, files: u32) -> Vec<SnapshotId> {
    let dir = state.join("indexes");
    fs::create_dir_all(&dir).unwrap();
    let (tree, groups) = tree(files);
    (0..snapshots)
        .map(|number| {
            let config = format!("{{\"number\":{number}}}");
            let config = config.as_bytes();
            let parts = IndexParts { kind: Kind::Image, tree: &tree, groups: &groups, config };
            let new = dir.join("new");
            write_index(parts, &mut File::create(&new).unwrap()).unwrap();
            let index = IndexDigest(Digest::of(&fs::read(&new).unwrap()));
            fs::rename(&new, dir.join(index.to_string())).unwrap();
            SnapshotId { kind: Kind::Image, index }
        })
        .collect()
}

/// A line of `/proc/PID/status`, in bytes.
fn resident(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

struct Measured {
    before: u64,
    attached: u64,
    walked: u64,
}

/// Mounts all of them at once, then looks at each file of some.
fn measure(snapshots: u32, files: u32) -> Measured {
    let inlay = local();
    let ids = indexes(inlay.state(), snapshots, files);
    let dir = scratch().unwrap();
    let state = inlay.state().display().to_string();
    let program = PathBuf::from(inlay.command().get_program());
    let words = ["daemon", "--state", &state].map(str::to_owned);
    let mut server = Server::start(&program, &words, &dir.path().join("log")).unwrap();
    let client = Client::new(&Paths::of(inlay.state())).unwrap();
    server.wait_until(|| client.status().is_ok_and(|status| status.is_some())).unwrap();
    let before = resident(server.pid(), "VmRSS:");
    let mut times = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let mountpoint = dir.path().join(format!("mnt-{number}"));
        fs::create_dir(&mountpoint).unwrap();
        let request = MountRequest {
            load: LoadOptions::default(),
            snapshot: id.to_string(),
            store: StoreRef { url: None, plain_http: false },
            cache: CacheUse::Kept,
            mountpoint: (&*mountpoint).into(),
            pid: None,
            view: WantedView::ReadOnly,
            chown: None,
            flags: MountFlags::default(),
            origin: MountOrigin::Command,
            deadline_ms: 60_000,
        };
        let start = Instant::now();
        let _: MountInfo = client.post(MOUNTS, &request, LIMIT).unwrap();
        times.push(start.elapsed());
    }
    let status = client.status().unwrap().unwrap();
    assert_eq!(status.attached, ids.len());
    let attached = resident(server.pid(), "VmRSS:");
    for number in 0..ids.len().min(20) {
        let mountpoint = dir.path().join(format!("mnt-{number}"));
        let found = Command::new("find").arg(&mountpoint).args(["-size", "+0"]).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap().lines().count();
        assert_eq!(found, files as usize);
    }
    let walked = resident(server.pid(), "VmRSS:");
    times.sort_unstable();
    println!(
        "{snapshots} snapshots of {files} files: {} MiB before, {} MiB attached, {} MiB after \
         walking 20 of them; a mount takes {:?} (median)",
        before >> 20,
        attached >> 20,
        walked >> 20,
        times[times.len() / 2]
    );
    inlay.succeed(["daemon", "stop", "--force"]).unwrap();
    inlay.wait_until_quiet().unwrap();
    Measured { before, attached, walked }
}

#[test]
fn an_attached_snapshot_takes_next_to_no_memory() {
    let snapshots = 50;
    let measured = measure(snapshots, 20_000);
    let growth = measured.attached.saturating_sub(measured.before);
    let limit = RESIDENT_MAX / 1000 * u64::from(snapshots);
    assert!(growth < limit, "{growth} bytes for {snapshots} snapshots, more than {limit}");
}

#[test]
#[ignore = "takes 4 GB of disk and some minutes"]
fn a_thousand_snapshots_of_fifty_thousand_files_stay_below_256_mib() {
    let measured = measure(1000, 50_000);
    assert!(measured.attached < RESIDENT_MAX, "{} bytes attached", measured.attached);
    assert!(measured.walked < RESIDENT_MAX, "{} bytes after a walk", measured.walked);
}
