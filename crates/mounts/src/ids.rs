//! Maps the file owners of a snapshot to owners on this host: one map for user ids, one for group
//! ids.
//!
//! The mapping has two steps. The server replaces the owner of the snapshot's root directory with
//! the wanted owner (an [`Alias`]), which may be many-to-one. Then, for a container in a user
//! namespace, the kernel maps all ids one-to-one (`mount_setattr(2)`, `MOUNT_ATTR_IDMAP`). As an
//! alias may turn an unprivileged user's files into root's, a mount with one ignores setuid and
//! setgid bits.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::MountError;
use super::kernel;
use super::make::view;
use super::path::Owner;

/// The number of valid user ids.
const ALL: u32 = u32::MAX;
/// The kernel's limit of ranges in a map.
const RANGES_MAX: usize = 340;
/// The number of user namespaces cached for further mounts.
const SPACES_MAX: usize = 64;

/// A range of ids: `count` ids from `of` on are shown as the ids from `shows` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct IdRange {
    /// The first id in the snapshot.
    pub of: u32,
    /// The id on this host that it is shown as.
    pub shows: u32,
    /// The length of the range, at least one.
    pub count: u32,
}

/// Non-overlapping ranges.
pub type IdMap = Vec<IdRange>;

/// How the owners of files are shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Owners {
    /// The map of user ids.
    #[schema(value_type = Vec<IdRange>)]
    pub users: IdMap,
    /// The map of group ids.
    #[schema(value_type = Vec<IdRange>)]
    pub groups: IdMap,
    /// Whether setuid and setgid bits are honoured.
    pub setuid: Setuid,
}

/// The replacement of the owner of a snapshot's root directory. All files of that user are shown as
/// the other user's, and likewise for the group; all other owners are unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Alias {
    /// The owner in the snapshot.
    pub from: Owner,
    /// The owner shown instead.
    pub to: Owner,
}

impl Alias {
    /// Returns the alias that shows the files of `root`, the owner of the root directory, as
    /// `wanted`'s. `None`: no change.
    pub fn of(root: Owner, wanted: Option<Owner>) -> Option<Self> {
        wanted.filter(|wanted| *wanted != root).map(|to| Self { from: root, to })
    }
}

/// The id that the kernel shows for unmapped ids: the default of `/proc/sys/kernel/overflowuid`.
const NOBODY: u32 = 65534;

impl Owners {
    /// Returns the user id on this host for the user `of` of the snapshot.
    pub fn user(&self, of: u32) -> u32 {
        mapped(&self.users, of).unwrap_or(NOBODY)
    }

    /// Returns the group id on this host for the group `of` of the snapshot.
    pub fn group(&self, of: u32) -> u32 {
        mapped(&self.groups, of).unwrap_or(NOBODY)
    }
}

/// Whether setuid and setgid bits are honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Setuid {
    /// They are honoured.
    Kept,
    /// They are ignored, because an alias is in effect.
    Ignored,
}

/// Returns the identity map.
fn identity() -> IdMap {
    vec![IdRange { of: 0, shows: 0, count: ALL }]
}

/// Returns the id that `map` shows for the id `of`; `None` if it is unmapped.
pub(super) fn mapped(map: &[IdRange], of: u32) -> Option<u32> {
    let range = map.iter().find(|range| of >= range.of && of - range.of < range.count)?;
    range.shows.checked_add(of - range.of)
}

/// Returns `map` composed with a preceding replacement of `from` by `to`.
fn aliased(map: &[IdRange], from: u32, to: u32) -> IdMap {
    let mut out = IdMap::new();
    for range in map {
        match from.checked_sub(range.of).filter(|before| *before < range.count) {
            None => out.push(*range),
            Some(before) => {
                let after = range.count - before - 1;
                let rest = |first: u32| first.saturating_add(before).saturating_add(1);
                out.push(IdRange { count: before, ..*range });
                out.push(IdRange { of: rest(range.of), shows: rest(range.shows), count: after });
            }
        }
    }
    out.extend(mapped(map, to).map(|shows| IdRange { of: from, shows, count: 1 }));
    out.retain(|range| range.count > 0);
    out.sort_unstable_by_key(|range| range.of);
    out
}

/// The id maps of a target's user namespace, relative to this process's; `None`: the same
/// namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Space {
    maps: Option<(IdMap, IdMap)>,
}

impl Space {
    /// Returns the maps of the process `pid`.
    pub(super) fn of(pid: u32) -> Result<Self, MountError> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let number = |dir: &Path| {
            let path = dir.join("ns/user");
            fs::metadata(&path).map(|meta| meta.ino()).map_err(MountError::io("look at", &path))
        };
        if number(&dir)? == number("/proc/self".as_ref())? {
            return Ok(Self::default());
        }
        Ok(Self { maps: Some((read(&dir.join("uid_map"))?, read(&dir.join("gid_map"))?)) })
    }

    /// Translates an owner from the target's ids to this process's; `None` if it is unmapped.
    pub(super) fn outside(&self, owner: Owner) -> Option<Owner> {
        match &self.maps {
            None => Some(owner),
            Some((users, groups)) => {
                Some(Owner { uid: mapped(users, owner.uid)?, gid: mapped(groups, owner.gid)? })
            }
        }
    }

    /// Returns how a snapshot served with `alias` is shown there. `None`: unchanged.
    pub(super) fn owners(&self, alias: Option<Alias>) -> Option<Owners> {
        let Some(Alias { from, to }) = alias else { return self.mapped(Setuid::Kept) };
        let (users, groups) = self.maps.clone().unwrap_or_else(|| (identity(), identity()));
        Some(Owners {
            users: aliased(&users, from.uid, to.uid),
            groups: aliased(&groups, from.gid, to.gid),
            setuid: Setuid::Ignored,
        })
    }

    /// Returns the maps for the kernel to apply, if any.
    pub(super) fn mapped(&self, setuid: Setuid) -> Option<Owners> {
        let (users, groups) = self.maps.clone()?;
        Some(Owners { users, groups, setuid })
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

/// Cached user namespaces that represent id maps.
#[derive(Debug, Default)]
pub(super) struct Spaces {
    kept: Mutex<HashMap<Owners, Arc<OwnedFd>>>,
}

impl Spaces {
    /// Clones the mount at the directory `dir` as a detached mount that shows `owners`.
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
    fn an_alias_moves_one_number_onto_another() {
        let map = aliased(&identity(), 0, 1000);
        assert_eq!(text(&map), "0 1000 1\n1 1 4294967294\n");
        let map = aliased(&identity(), 1000, 0);
        assert_eq!(text(&map), "0 0 1000\n1000 0 1\n1001 1001 4294966294\n");
        let owner = |uid, gid| Owner { uid, gid };
        let other = Some(Alias { from: Owner::ROOT, to: owner(0, 5) });
        assert_eq!(Alias::of(Owner::ROOT, Some(owner(0, 5))), other);
        assert_eq!(Alias::of(Owner::ROOT, Some(Owner::ROOT)), None);
        assert_eq!(Alias::of(Owner::ROOT, None), None);
    }

    #[test]
    fn a_container_has_numbers_of_its_own() {
        let maps = parse("         0     100000      65536\n").unwrap();
        let space = Space { maps: Some((maps.clone(), maps)) };
        let root = space.owners(None).unwrap();
        assert_eq!(text(&root.users), "0 100000 65536\n");
        assert_eq!(root.setuid, Setuid::Kept);
        let alias = |from| Alias::of(from, Some(Owner { uid: 1000, gid: 5 }));
        let user = space.owners(alias(Owner::ROOT)).unwrap();
        assert_eq!(mapped(&user.users, 0), Some(101_000));
        assert_eq!(mapped(&user.users, 1000), Some(101_000));
        assert_eq!(mapped(&user.groups, 0), Some(100_005));
        assert_eq!(mapped(&user.groups, 5), Some(100_005));
        // The kernel maps the ids that the server shows.
        let mapped = space.mapped(user.setuid).unwrap();
        assert_eq!((text(&mapped.users), mapped.setuid), (text(&root.users), Setuid::Ignored));
        // The owner of the root directory need not be mapped in the container.
        let far = space.owners(alias(Owner { uid: 70_000, gid: 70_000 })).unwrap();
        assert_eq!((far.user(70_000), far.user(70_001), far.user(0)), (101_000, NOBODY, 100_000));
        assert_eq!(space.outside(Owner { uid: 70_000, gid: 0 }), None);
        assert!(Space::default().owners(None).is_none());
        assert!(Space::default().mapped(Setuid::Ignored).is_none());
        assert!(parse("0 1").is_none() && parse("").is_none() && parse("a b c").is_none());
    }

    proptest! {
        #[test]
        fn an_alias_moves_one_number_and_no_other(
            start in 0u32..50, count in 1u32..60, base in 0u32..1000,
            from in 0u32..120, to in 0u32..120,
        ) {
            let map = vec![IdRange { of: start, shows: base, count }];
            let out = aliased(&map, from, to);
            for of in 0..120 {
                let seen_as = if of == from { to } else { of };
                prop_assert_eq!(mapped(&out, of), mapped(&map, seen_as));
                prop_assert!(out.iter().filter(|r| of >= r.of && of - r.of < r.count).count() < 2);
            }
            prop_assert!(out.iter().all(|range| range.count > 0));
        }
    }
}
