//! Resolves users and groups with the sandbox's own `/etc/passwd` and `/etc/group`.
//!
//! The semantics are those of `docker run --user`. The files are untrusted: they are opened beneath
//! the sandbox's root, must be regular files, and have a size limit.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use inlay_base::held::Held;
use inlay_base::in_root;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::error::SandboxError;

/// The maximum size of these files, in bytes.
const FILE_LEN_MAX: u64 = 4 << 20;
/// The kernel's maximum number of supplementary groups.
const GROUPS_MAX: usize = 65536;
/// The largest user or group id: `u32::MAX` means none.
const NUMBER_MAX: u32 = u32::MAX - 1;

/// The user and groups of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The supplementary groups.
    pub(super) groups: Vec<u32>,
    /// The home directory.
    pub(super) home: String,
}

/// Resolves `user` (`NAME|UID[:GROUP|GID]`, empty: root) with the files below `root`.
pub(super) fn resolve(root: &Path, user: &str) -> Result<Identity, SandboxError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(root, flags, Mode::empty()).map_err(SandboxError::io("open", root))?;
    let passwd = read(&dir, "etc/passwd", user)?;
    let group = read(&dir, "etc/group", user)?;
    find(user, &passwd, &group).map_err(|why| SandboxError::User { user: user.to_owned(), why })
}

/// Reads a file of the sandbox; returns an empty string if it does not exist.
fn read(root: &OwnedFd, path: &str, user: &str) -> Result<String, SandboxError> {
    let wrong = |why: String| SandboxError::User {
        user: user.to_owned(),
        why: format!("/{path} of the sandbox {why}"),
    };
    let failed = |errno: Errno| wrong(format!("can't be opened: {errno}"));
    let held = match in_root::open(root, Path::new(path), OFlags::PATH) {
        Ok(fd) => Held::of(fd).map_err(failed)?,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(failed(errno)),
    };
    let file = held.open_file().map_err(failed)?;
    let file = file.ok_or_else(|| wrong("is not a regular file".to_owned()))?;
    let mut bytes = Vec::new();
    let read = File::from(file).take(FILE_LEN_MAX + 1).read_to_end(&mut bytes);
    match read {
        Ok(len) if u64::try_from(len).is_ok_and(|len| len <= FILE_LEN_MAX) => {
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Ok(_) => Err(wrong(format!("is longer than {FILE_LEN_MAX} bytes"))),
        Err(error) => Err(wrong(format!("can't be read: {error}"))),
    }
}

/// A line of passwd(5).
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(User { name, uid: number(uid)?, gid: number(gid)?, home })
    })
}

/// A line of group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group { name, gid: number(gid)?, members: fields.next().unwrap_or_default() })
    })
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number <= NUMBER_MAX)
}

fn find(wanted: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let as_number = number(user);
    let entry = users(passwd).find(|entry| entry.name == user || as_number == Some(entry.uid));
    let (uid, gid) = match (&entry, as_number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(no_such("user", "passwd")),
    };
    let home = entry.as_ref().map(|entry| entry.home).filter(|home| home.starts_with('/'));
    let home = home.unwrap_or("/").to_owned();
    if let Some(wanted) = wanted_group {
        let as_number = number(wanted);
        let entry =
            groups(group).find(|entry| entry.name == wanted || as_number == Some(entry.gid));
        let gid = entry.map(|entry| entry.gid).or(as_number);
        let gid = gid.ok_or_else(|| no_such("group", "group"))?;
        return Ok(Identity { uid, gid, groups: Vec::new(), home });
    }
    let mut others: Vec<u32> = match &entry {
        None => Vec::new(),
        Some(user) => groups(group)
            .filter(|group| group.members.split(',').any(|member| member == user.name))
            .map(|group| group.gid)
            .take(GROUPS_MAX)
            .collect(),
    };
    others.sort_unstable();
    others.dedup();
    Ok(Identity { uid, gid, groups: others, home })
}

fn no_such(what: &str, file: &str) -> String {
    format!("no such {what} in the sandbox's /etc/{file}; give its number, or one that is there")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::FileType;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a remark\n\nbroken\n\
        app:x:1000:1001:,,,:/home/app:/bin/sh\n1234:x:77:77::/odd:\nrel:x:5:5::home:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\nwheel:x:10:root,app\nten:x:10:app\nx:x\n";

    fn found(user: &str) -> Option<(u32, u32, Vec<u32>, String)> {
        find(user, PASSWD, GROUP).ok().map(|id| (id.uid, id.gid, id.groups, id.home))
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let home = |path: &str| path.to_owned();
        assert_eq!(found(""), Some((0, 0, vec![10], home("/root"))));
        assert_eq!(found("app"), Some((1000, 1001, vec![10, 50], home("/home/app"))));
        assert_eq!(found("1000"), found("app"));
        assert_eq!(found("app:staff"), Some((1000, 50, vec![], home("/home/app"))));
        assert_eq!(found("app:"), found("app"));
        assert_eq!(found("4000"), Some((4000, 0, vec![], home("/"))));
        assert_eq!(found("4000:4001"), Some((4000, 4001, vec![], home("/"))));
        assert_eq!(found(":50"), Some((0, 50, vec![], home("/root"))));
        // A name that looks like a number is a name.
        assert_eq!(found("1234").map(|user| user.0), Some(77));
        assert_eq!(found("rel").map(|user| user.3), Some(home("/")));
        for nobody in ["nobody", "app:nogroup", "-1", "4294967295", "app:4294967295", "a b"] {
            assert_eq!(found(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn the_files_are_those_of_the_sandbox_and_nothing_else() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        assert_eq!(resolve(&root, "").unwrap().uid, 0);
        assert!(resolve(&root, "app").is_err());
        // A symlink that escapes the root resolves to the sandbox's own files.
        fs::create_dir_all(root.join("real")).unwrap();
        fs::write(root.join("real/passwd"), PASSWD).unwrap();
        fs::write(host.path().join("passwd"), "evil:x:0:0::/:\n").unwrap();
        symlink("../../../../real/passwd", root.join("etc/passwd")).unwrap();
        assert_eq!(resolve(&root, "app").unwrap().uid, 1000);
        assert!(resolve(&root, "evil").is_err());
        fs::remove_file(root.join("etc/passwd")).unwrap();
        symlink("/proc/self/environ", root.join("etc/passwd")).unwrap();
        assert!(resolve(&root, "app").is_err());
        fs::remove_file(root.join("etc/passwd")).unwrap();
        let fifo = root.join("etc/passwd");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let error = resolve(&root, "app").unwrap_err().to_string();
        assert!(error.contains("regular file"), "{error}");
        fs::remove_file(&fifo).unwrap();
        File::create(&fifo).unwrap().set_len(FILE_LEN_MAX + 1).unwrap();
        let error = resolve(&root, "app").unwrap_err().to_string();
        assert!(error.contains("longer"), "{error}");
    }
}
