//! Metadata of a snapshot as a mount shows it that maps owners.

use inlay_store::tree::Meta;

use crate::mount::Owners;

/// Attributes that name users and groups by their numbers.
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// `struct posix_acl_xattr_header` of Linux: a version.
const HEADER_LEN: usize = 4;
/// `struct posix_acl_xattr_entry`: tag and permissions of two bytes, a number of four.
const ENTRY_LEN: usize = 8;
/// `ACL_USER` and `ACL_GROUP`: the tags of entries whose number counts.
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

/// Gives `meta`, which is as in a snapshot, the owners that are shown.
pub(super) fn map(meta: &mut Meta, owners: &Owners) {
    (meta.uid, meta.gid) = (owners.user(meta.uid), owners.group(meta.gid));
    for (name, value) in &mut meta.xattrs {
        if ACLS.contains(&name.as_ref()) {
            *value = acl(value, owners).into();
        }
    }
}

/// An access control list as the kernel shows it through such a mount.
fn acl(value: &[u8], owners: &Owners) -> Vec<u8> {
    let mut out = value.to_vec();
    let entries = out.get_mut(HEADER_LEN..).unwrap_or_default();
    for entry in entries.chunks_exact_mut(ENTRY_LEN) {
        let [tag0, tag1, _, _, n0, n1, n2, n3] = entry else { continue };
        let number = u32::from_le_bytes([*n0, *n1, *n2, *n3]);
        let shown = match u16::from_le_bytes([*tag0, *tag1]) {
            USER => owners.user(number),
            GROUP => owners.group(number),
            _ => continue,
        };
        [*n0, *n1, *n2, *n3] = shown.to_le_bytes();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{IdRange, Setuid};

    /// 0 and 1000 have changed places, all else below 5000 is as it is.
    fn owners() -> Owners {
        let range = |of, shows, count| IdRange { of, shows, count };
        let map =
            vec![range(0, 1000, 1), range(1, 1, 999), range(1000, 0, 1), range(1001, 1001, 3999)];
        Owners { users: map.clone(), groups: map, setuid: Setuid::Ignored }
    }

    #[test]
    fn owners_and_lists_have_the_numbers_that_are_shown() {
        let entry = |tag: u16, number: u32| {
            [&tag.to_le_bytes()[..], &[6, 0], &number.to_le_bytes()].concat()
        };
        let list = |user, group| {
            let entries = [entry(1, u32::MAX), entry(2, user), entry(8, group), entry(32, 0)];
            [&2u32.to_le_bytes()[..], &entries.concat()].concat()
        };
        let plain = (b"user.x"[..].into(), list(0, 0).into());
        let mut meta = Meta { uid: 1000, gid: 7, ..Meta::default() };
        meta.xattrs = vec![(ACLS[0].into(), list(0, 1000).into()), plain];
        map(&mut meta, &owners());
        assert_eq!((meta.uid, meta.gid), (0, 7));
        assert_eq!(*meta.xattrs[0].1, *list(1000, 0));
        assert_eq!(*meta.xattrs[1].1, *list(0, 0));
        // Nobody has this one.
        let mut meta = Meta { uid: 5000, ..Meta::default() };
        map(&mut meta, &owners());
        assert_eq!((meta.uid, meta.gid), (65534, 1000));
        // What is no list stays as long as it is.
        assert_eq!(acl(b"abc", &owners()), b"abc");
    }
}
