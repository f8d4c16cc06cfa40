//! Maps the owners in metadata of a snapshot as a mount with mapped owners does.

use inlay_store::acl;
use inlay_store::tree::Meta;

use inlay_mounts::Owners;

/// Replaces the owners in `meta`, including those in ACLs, with the ones shown.
pub(super) fn map(meta: &mut Meta, owners: &Owners) {
    (meta.uid, meta.gid) = (owners.user(meta.uid), owners.group(meta.gid));
    for (name, value) in &mut meta.xattrs {
        if acl::is_acl(name) {
            let shown = acl::renumbered(value, |of| owners.user(of), |of| owners.group(of));
            *value = shown.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_mounts::{IdMap, IdRange, Setuid};

    const ACL: &[u8] = b"system.posix_acl_access";

    fn entry(tag: u16, permissions: u8, number: u32) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &[permissions, 0], &number.to_le_bytes()].concat()
    }

    fn list(entries: &[Vec<u8>]) -> Vec<u8> {
        [&2u32.to_le_bytes()[..], &entries.concat()].concat()
    }

    fn owners(ranges: &[(u32, u32, u32)]) -> Owners {
        let map: IdMap =
            ranges.iter().map(|&(of, shows, count)| IdRange { of, shows, count }).collect();
        Owners { users: map.clone(), groups: map, setuid: Setuid::Ignored }
    }

    /// As recorded by versions before owner aliases.
    #[test]
    fn owners_that_have_changed_places_are_still_captured_so() {
        let owners = owners(&[(0, 1000, 1), (1, 1, 999), (1000, 0, 1), (1001, 1001, 3999)]);
        let list = |user, group| {
            list(&[entry(1, 6, u32::MAX), entry(2, 6, user), entry(8, 6, group), entry(32, 6, 0)])
        };
        let plain = (b"user.x"[..].into(), list(0, 0).into());
        let mut meta = Meta { uid: 1000, gid: 7, ..Meta::default() };
        meta.xattrs = vec![(ACL.into(), list(0, 1000).into()), plain];
        map(&mut meta, &owners);
        assert_eq!((meta.uid, meta.gid), (0, 7));
        assert_eq!(*meta.xattrs[0].1, *list(1000, 0));
        assert_eq!(*meta.xattrs[1].1, *list(0, 0));
        // This id is in no range.
        let mut meta = Meta { uid: 5000, ..Meta::default() };
        map(&mut meta, &owners);
        assert_eq!((meta.uid, meta.gid), (65534, 1000));
    }

    #[test]
    fn two_owners_may_be_shown_as_one() {
        let owners = owners(&[(0, 1000, 1), (1, 1, u32::MAX - 1)]);
        for (of, shows) in [(0, 1000), (1000, 1000), (7, 7)] {
            let mut meta = Meta { uid: of, gid: of, ..Meta::default() };
            meta.xattrs = vec![(ACL.into(), list(&[entry(2, 4, 0), entry(2, 2, 1000)]).into())];
            map(&mut meta, &owners);
            assert_eq!((meta.uid, meta.gid), (shows, shows));
            assert_eq!(*meta.xattrs[0].1, *list(&[entry(2, 6, 1000)]));
        }
    }
}
