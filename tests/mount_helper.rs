//! The program as mount(8) calls it, `mount.inlay`: words, exit codes, mounts. They need root and
//! /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::scratch;
use tempfile::TempDir;

/// A state with the snapshot `base`, a mount point, and the helper.
struct Host {
    inlay: Inlay,
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { inlay: local(), dir: scratch().unwrap() };
        fs::create_dir(host.dir.path().join("tree")).unwrap();
        fs::write(host.dir.path().join("tree/file"), "x").unwrap();
        fs::create_dir(host.mnt()).unwrap();
        symlink(env!("CARGO_BIN_EXE_inlay"), host.helper()).unwrap();
        import(&host.inlay, &of("dir", &host.dir.path().join("tree")), "base");
        host
    }

    fn helper(&self) -> PathBuf {
        self.dir.path().join("mount.inlay")
    }

    fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// `program` with the environment of this state.
    fn program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, value) in self.inlay.command().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    fn call(&self, source: &str, words: &[&str]) -> Output {
        self.program(self.helper()).arg(source).arg(self.mnt()).args(words).output().unwrap()
    }

    fn mount(&self, options: &str) {
        let ran = self.call("inlay:base", &["-o", options]);
        assert!(ran.status.success() && ran.stdout.is_empty() && ran.stderr.is_empty(), "{ran:?}");
    }

    /// The one line that the helper says, and its exit code.
    fn refused(&self, source: &str, words: &[&str]) -> (i32, String) {
        let ran = self.call(source, words);
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("mount.inlay: ") && ran.stdout.is_empty(), "{said}");
        (ran.status.code().unwrap(), said)
    }

    fn umount(&self) {
        let ran = Command::new("umount").arg(self.mnt()).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
    }

    /// What the kernel says of the mount.
    fn flags(&self) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mnt = self.mnt().to_str().unwrap().to_owned();
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&mnt)).unwrap();
        line.split(' ').nth(5).unwrap().to_owned()
    }

    fn read(&self) -> String {
        fs::read_to_string(self.mnt().join("file")).unwrap()
    }
}

#[test]
fn it_mounts_as_the_options_say_and_umount_ends_it() {
    let host = Host::new();
    let write = || fs::write(host.mnt().join("new"), "y");
    host.mount("ro,nosuid,nodev,noexec,_netdev,nofail");
    assert_eq!(host.read(), "x");
    assert!(write().is_err());
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(host.flags().split(',').any(|found| found == flag), "{}", host.flags());
    }
    host.umount();
    host.inlay.wait_until_quiet().unwrap();

    host.mount("rw");
    assert!(write().is_err(), "rw is what mount(8) always gives");
    assert!(!host.flags().contains("no"), "{}", host.flags());
    host.umount();
    host.inlay.wait_until_quiet().unwrap();

    host.mount("scratch,noexec");
    assert!(host.flags().contains("noexec"));
    write().unwrap();
    host.umount();
    host.inlay.wait_until_quiet().unwrap();

    let upper = host.dir.path().join("upper, a");
    for options in ["writable".to_owned(), format!("upper=\"{}\"", upper.display())] {
        host.mount(&options);
        write().unwrap();
        host.umount();
        host.inlay.wait_until_quiet().unwrap();
        host.mount(&options);
        assert_eq!(fs::read(host.mnt().join("new")).unwrap(), b"y", "{options}");
        host.umount();
        host.inlay.wait_until_quiet().unwrap();
    }
    assert!(upper.join("upper/new").exists());
}

#[test]
fn the_same_mount_once_more_is_no_error() {
    let host = Host::new();
    let upper = host.dir.path().join("upper");
    let upper = format!("upper={}", upper.display());
    fs::write(host.dir.path().join("tree/file"), "z").unwrap();
    import(&host.inlay, &of("dir", &host.dir.path().join("tree")), "other");
    for options in ["ro,nosuid", "writable", "scratch", &upper] {
        host.mount(options);
        host.mount(options);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mnt = host.mnt().to_str().unwrap().to_owned();
        let count = table.lines().filter(|line| line.split(' ').nth(4) == Some(&mnt)).count();
        assert_eq!(count, 1, "{options}");
        for (source, other) in [("inlay:base", "ro,nodev"), ("inlay:other", options)] {
            let (code, said) = host.refused(source, &["-o", other]);
            assert_eq!(code, 32, "{said}");
            assert!(said.contains("already mounted"), "{said}");
        }
        assert_eq!(host.read(), "x");
        host.umount();
        host.inlay.wait_until_quiet().unwrap();
    }
}

#[test]
fn exit_codes_are_those_of_mount() {
    let host = Host::new();
    for (source, words, named) in [
        ("inlay:base", &["-o", "ro,frob=1"][..], "frob=1"),
        ("inlay:base", &["-o", "ro,writable"], "writable"),
        ("inlay:base", &["-x"], "-x"),
        ("/dev/base", &[], "/dev/base"),
    ] {
        let (code, said) = host.refused(source, words);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(named), "{said}");
    }
    let (code, said) = host.refused("inlay:absent", &["-o", "ro"]);
    assert_eq!(code, 32, "{said}");
    assert!(said.contains("'absent'"), "{said}");
    let (code, said) = host.refused("inlay:base", &["-o", "remount,ro"]);
    assert_eq!(code, 32, "{said}");
    assert!(host.call("inlay:base", &["-f"]).status.success());
    assert!(!host.mnt().join("file").exists());
    assert!(host.call("inlay:base", &["-sv", "-o", "frob=1"]).status.success());
    assert_eq!(host.read(), "x");
    host.umount();
    fs::remove_dir(host.mnt()).unwrap();
    let (code, said) = host.refused("inlay:base", &[]);
    assert_eq!(code, 32, "{said}");
    assert!(said.contains("existing directory"), "{said}");
    host.inlay.wait_until_quiet().unwrap();
}

/// In a mount namespace of its own, whose /sbin has the helper.
#[test]
fn mount_finds_it() {
    let host = Host::new();
    let script = r#"
        set -e
        sbin=$(realpath /sbin)
        mount -t tmpfs tmpfs "$1"
        mkdir "$1/new" "$1/upper" "$1/work"
        mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$1/upper,workdir=$1/work" "$1/new"
        ln -s "$2" "$1/new/mount.inlay"
        mount --bind "$1/new" "$sbin"
        echo "inlay:base $3 inlay ro,nosuid,nofail,x-systemd.after=inlay.service 0 0" >"$1/fstab"
        mount -T "$1/fstab" -a
        cat "$3/file"
        mount -T "$1/fstab" -a
        grep -c " $3 " /proc/self/mountinfo
        umount "$3"
        mount -t inlay inlay:base "$3" -o scratch
        echo changed >"$3/file"
        umount "$3"
        mount -t inlay inlay:absent "$3" || echo "exit $?"
    "#;
    let area = host.dir.path().join("area");
    fs::create_dir(&area).unwrap();
    let mut shell = host.program("unshare");
    shell.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    let ran = shell.args([&area, Path::new(env!("CARGO_BIN_EXE_inlay")), &host.mnt()]).output();
    let ran = ran.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(said, "x1\nexit 32\n", "{}", String::from_utf8_lossy(&ran.stderr));
    host.inlay.wait_until_quiet().unwrap();
}

/// The daemon is none of those whom the kernel lets pass at an automount point.
#[test]
fn an_automount_is_mounted_when_it_is_used() {
    let host = Host::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mount_helper_kit/automount.py");
    let ran = host.program("python3").arg(script).args([host.helper(), host.mnt()]).output();
    let ran = ran.unwrap();
    assert!(ran.status.success() && ran.stdout == b"x", "{ran:?}");
    host.inlay.wait_until_quiet().unwrap();
}

/// With what systemd is installed.
#[test]
fn systemd_finds_no_fault_with_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return;
    }
    let dir = scratch().unwrap();
    let program = env!("CARGO_BIN_EXE_inlay");
    let mut files = Vec::new();
    for name in ["inlay.service", "srv-base.mount", "srv-base.automount"] {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/systemd").join(name);
        let text =
            fs::read_to_string(shipped).unwrap().replace("/usr/bin/inlay ", &format!("{program} "));
        files.push(dir.path().join(name));
        fs::write(dir.path().join(name), text).unwrap();
    }
    let ran = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files).output();
    let ran = ran.unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn the_manual_page_has_the_options_that_the_documents_list() {
    let page = include_str!("../dist/man/mount.inlay.8");
    let (_, options) = page.split_once("\n.SH MOUNT OPTIONS\n").unwrap();
    let (_, section) = include_str!("../docs/OPERATIONS.md").split_once("\n## At boot\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let names: Vec<&str> = cells
        .flat_map(|cell| cell.split(['`', ',', ' ']))
        .filter_map(|word| word.split(['=', '…']).next())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(names.len() > 10 && names.contains(&"upper"), "{names:?}");
    for name in names {
        assert!(options.contains(name), "{name} is not in mount.inlay.8");
    }
}
