//! Whose files of a snapshot are shown as whose: a map of numbers for users and one for groups, which
//! the kernel applies to a view (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`).
//!
//! Such a map is one to one. So the owner of the snapshot's root directory changes places with the
//! wanted owner, and everybody else stays as is. As that may turn files of an unprivileged user into
//! root's, such a view ignores setuid and setgid bits.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::MountError;
use super::kernel;
use super::make::view;
use super::path::Owner;

/// All numbers that a user may have.
const ALL: u32 = u32::MAX;
/// The most ranges of a map that the kernel takes.
const RANGES_MAX: usize = 340;
/// How many user namespaces are kept for the next mounts.
const SPACES_MAX: usize = 64;

/// A range of numbers: `count` from `shows` on are shown for as many from `of` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct IdRange {
    /// The first one in the snapshot.
    pub of: u32,
    /// What this host has for it.
    pub shows: u32,
    /// How many follow one another, at least one.
    pub count: u32,
}

/// Ranges that do not overlap.
pub type IdMap = Vec<IdRange>;

/// Whose files are shown as whose.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Owners {
    /// Users.
    #[schema(value_type = Vec<IdRange>)]
    pub users: IdMap,
    /// Groups.
    #[schema(value_type = Vec<IdRange>)]
    pub groups: IdMap,
    /// Whether setuid and setgid bits count.
    pub setuid: Setuid,
}

/// What the kernel shows for a number that has none in a map: the default of
/// `/proc/sys/kernel/overflowuid`.
const NOBODY: u32 = 65534;

impl Owners {
    /// The number that this host has for the user `of` of the snapshot.
    pub(crate) fn user(&self, of: u32) -> u32 {
        shown(&self.users, of).unwrap_or(NOBODY)
    }

    /// The same for a group.
    pub(crate) fn group(&self, of: u32) -> u32 {
        shown(&self.groups, of).unwrap_or(NOBODY)
    }
}

/// Whether setuid and setgid bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Setuid {
    /// As in the snapshot.
    Kept,
    /// They are ignored, because owners have changed places.
    Ignored,
}

/// The map of what is as it is.
fn identity() -> IdMap {
    vec![IdRange { of: 0, shows: 0, count: ALL }]
}

/// What `map` shows for the number `of`.
pub(super) fn shown(map: &[IdRange], of: u32) -> Option<u32> {
    let range = map.iter().find(|range| of >= range.of && of - range.of < range.count)?;
    range.shows.checked_add(of - range.of)
}

/// `map` after `a` and `b` have changed places.
fn swapped(map: &[IdRange], a: u32, b: u32) -> IdMap {
    if a == b {
        return map.to_vec();
    }
    let mut out = IdMap::new();
    for range in map {
        let mut rest = *range;
        for point in [a.min(b), a.max(b)] {
            if point < rest.of || point - rest.of >= rest.count {
                continue;
            }
            let before = point - rest.of;
            if before > 0 {
                out.push(IdRange { count: before, ..rest });
            }
            let taken = before + 1;
            rest = IdRange {
                of: rest.of.saturating_add(taken),
                shows: rest.shows.saturating_add(taken),
                count: rest.count - taken,
            };
        }
        if rest.count > 0 {
            out.push(rest);
        }
    }
    for (of, seen_as) in [(a, b), (b, a)] {
        if let Some(shows) = shown(map, seen_as) {
            out.push(IdRange { of, shows, count: 1 });
        }
    }
    out.sort_unstable_by_key(|range| range.of);
    out
}

/// The numbers of the user namespace of a target, as this process has them; empty: the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Space {
    maps: Option<(IdMap, IdMap)>,
}

impl Space {
    /// That of the process `pid`.
    pub(super) fn of(pid: Pid) -> Result<Self, MountError> {
        let dir = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let number = |dir: &Path| {
            let path = dir.join("ns/user");
            fs::metadata(&path).map(|meta| meta.ino()).map_err(MountError::io("look at", &path))
        };
        if number(&dir)? == number("/proc/self".as_ref())? {
            return Ok(Self::default());
        }
        Ok(Self { maps: Some((read(&dir.join("uid_map"))?, read(&dir.join("gid_map"))?)) })
    }

    /// What this process has for an owner who is said in numbers of the target.
    pub(super) fn outside(&self, owner: Owner) -> Option<Owner> {
        match &self.maps {
            None => Some(owner),
            Some((users, groups)) => {
                Some(Owner { uid: shown(users, owner.uid)?, gid: shown(groups, owner.gid)? })
            }
        }
    }

    /// How a snapshot is shown whose root directory is `root`'s, when that is to be `wanted`'s.
    /// `None`: as it is.
    pub(super) fn owners(&self, root: Owner, wanted: Option<Owner>) -> Option<Owners> {
        let (users, groups) = self.maps.clone().unwrap_or_else(|| (identity(), identity()));
        let wanted = wanted.filter(|wanted| *wanted != root);
        match wanted {
            None => self.maps.is_some().then_some(Owners { users, groups, setuid: Setuid::Kept }),
            Some(wanted) => Some(Owners {
                users: swapped(&users, root.uid, wanted.uid),
                groups: swapped(&groups, root.gid, wanted.gid),
                setuid: Setuid::Ignored,
            }),
        }
    }
}

fn read(path: &Path) -> Result<IdMap, MountError> {
    let text = fs::read_to_string(path).map_err(MountError::io("read", path))?;
    parse(&text).ok_or_else(|| {
        let why = io::Error::other("it is not as user_namespaces(7) has it, or empty");
        MountError::io("understand", path)(why)
    })
}

fn parse(text: &str) -> Option<IdMap> {
    let mut map = IdMap::new();
    for line in text.lines().take(RANGES_MAX) {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        map.push(IdRange { of: next()?, shows: next()?, count: next()? });
    }
    (!map.is_empty()).then_some(map)
}

fn text(map: &[IdRange]) -> String {
    let lines = map.iter().map(|range| format!("{} {} {}", range.of, range.shows, range.count));
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

/// User namespaces that stand for maps, kept for the next mounts.
#[derive(Debug, Default)]
pub(super) struct Spaces {
    kept: Mutex<HashMap<Owners, Arc<OwnedFd>>>,
}

impl Spaces {
    /// A view of the directory `dir` that shows the `owners` and is mounted nowhere yet.
    pub(super) fn view(&self, dir: &Path, owners: &Owners) -> Result<OwnedFd, MountError> {
        let tree = view(dir)?;
        self.space(owners)
            .and_then(|space| kernel::map_ids(tree.as_fd(), space.as_fd(), owners.setuid))
            .map_err(|source| MountError::Owners { dir: dir.to_owned(), source })?;
        Ok(tree)
    }

    fn space(&self, owners: &Owners) -> io::Result<Arc<OwnedFd>> {
        if let Some(space) = self.kept.lock().get(owners) {
            return Ok(Arc::clone(space));
        }
        let made = Arc::new(kernel::user_namespace(&text(&owners.users), &text(&owners.groups))?);
        let mut kept = self.kept.lock();
        if kept.len() >= SPACES_MAX {
            kept.clear();
        }
        kept.insert(owners.clone(), Arc::clone(&made));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn root_and_a_user_change_places() {
        let map = swapped(&identity(), 0, 1000);
        assert_eq!(text(&map), "0 1000 1\n1 1 999\n1000 0 1\n1001 1001 4294966294\n");
        assert_eq!(swapped(&identity(), 7, 7), identity());
        assert_eq!(swapped(&identity(), 1, 0), swapped(&identity(), 0, 1));
    }

    #[test]
    fn a_container_has_numbers_of_its_own() {
        let maps = parse("         0     100000      65536\n").unwrap();
        let space = Space { maps: Some((maps.clone(), maps)) };
        let root = space.owners(Owner::ROOT, None).unwrap();
        assert_eq!(text(&root.users), "0 100000 65536\n");
        assert_eq!(root.setuid, Setuid::Kept);
        let user = space.owners(Owner::ROOT, Some(Owner { uid: 1000, gid: 5 })).unwrap();
        assert_eq!(shown(&user.users, 0), Some(101_000));
        assert_eq!(shown(&user.users, 1000), Some(100_000));
        assert_eq!(shown(&user.groups, 0), Some(100_005));
        assert_eq!(space.outside(Owner { uid: 70_000, gid: 0 }), None);
        assert!(Space::default().owners(Owner::ROOT, Some(Owner::ROOT)).is_none());
        assert!(parse("0 1").is_none() && parse("").is_none() && parse("a b c").is_none());
    }

    proptest! {
        #[test]
        fn a_swap_moves_two_numbers_and_no_other(
            start in 0u32..50, count in 1u32..60, base in 0u32..1000,
            a in 0u32..120, b in 0u32..120, other in 0u32..120,
        ) {
            let map = vec![IdRange { of: start, shows: base, count }];
            let out = swapped(&map, a, b);
            prop_assert_eq!(shown(&out, a), shown(&map, b));
            prop_assert_eq!(shown(&out, b), shown(&map, a));
            if other != a && other != b {
                prop_assert_eq!(shown(&out, other), shown(&map, other));
            }
            // What the kernel insists on.
            for of in 0..120 {
                prop_assert!(out.iter().filter(|r| of >= r.of && of - r.of < r.count).count() < 2);
            }
            prop_assert!(out.iter().all(|range| range.count > 0));
        }
    }
}
