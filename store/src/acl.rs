//! Renumbers the users and groups in POSIX access control lists, in the encoding that the kernel
//! uses for extended attributes.

use std::borrow::Cow;

/// The attributes that hold access control lists.
const NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// `struct posix_acl_xattr_header` of Linux: a 4-byte version.
const HEADER_LEN: usize = 4;
/// `struct posix_acl_xattr_entry`: a 2-byte tag, 2-byte permissions, and a 4-byte uid or gid.
const ENTRY_LEN: usize = 8;
/// `ACL_USER` and `ACL_GROUP`: the tags of entries that carry a uid or gid.
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;

/// Returns whether the attribute `name` holds an access control list.
pub fn is_acl(name: &[u8]) -> bool {
    NAMES.contains(&name)
}

/// Returns the list `value` with its uids mapped by `user` and its gids mapped by `group`.
///
/// If two entries map to the same user or group, they are merged, and the merged entry grants the
/// union of their permissions. Returns a value that is not a list unchanged.
pub fn renumbered(
    value: &[u8],
    user: impl Fn(u32) -> u32,
    group: impl Fn(u32) -> u32,
) -> Cow<'_, [u8]> {
    let Some((header, body)) = value.split_at_checked(HEADER_LEN) else { return value.into() };
    let (entries, rest) = body.as_chunks::<ENTRY_LEN>();
    if !rest.is_empty() {
        return value.into();
    }
    let mut out: Vec<AclEntry> = Vec::with_capacity(entries.len());
    for bytes in entries {
        let mut entry = AclEntry::from(*bytes);
        match entry.tag {
            USER => entry.number = user(entry.number),
            GROUP => entry.number = group(entry.number),
            _ => {
                out.push(entry);
                continue;
            }
        }
        // A linear search is enough: the attributes of one inode take at most 64 KiB.
        let same = |known: &&mut AclEntry| (known.tag, known.number) == (entry.tag, entry.number);
        match out.iter_mut().find(same) {
            Some(known) => known.permissions |= entry.permissions,
            None => out.push(entry),
        }
    }
    let mut bytes = header.to_vec();
    bytes.extend(out.into_iter().flat_map(AclEntry::bytes));
    bytes.into()
}

/// One entry of a list.
struct AclEntry {
    tag: u16,
    permissions: u16,
    number: u32,
}

impl From<[u8; ENTRY_LEN]> for AclEntry {
    fn from([t0, t1, p0, p1, n0, n1, n2, n3]: [u8; ENTRY_LEN]) -> Self {
        Self {
            tag: u16::from_le_bytes([t0, t1]),
            permissions: u16::from_le_bytes([p0, p1]),
            number: u32::from_le_bytes([n0, n1, n2, n3]),
        }
    }
}

impl AclEntry {
    fn bytes(self) -> [u8; ENTRY_LEN] {
        let ([t0, t1], [p0, p1]) = (self.tag.to_le_bytes(), self.permissions.to_le_bytes());
        let [n0, n1, n2, n3] = self.number.to_le_bytes();
        [t0, t1, p0, p1, n0, n1, n2, n3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |&(tag, permissions, number)| AclEntry { tag, permissions, number }.bytes();
        2u32.to_le_bytes().into_iter().chain(entries.iter().flat_map(entry)).collect()
    }

    #[test]
    fn users_and_groups_get_other_numbers() {
        let before =
            list(&[(1, 6, u32::MAX), (2, 4, 0), (2, 6, 7), (8, 5, 0), (16, 7, 0), (32, 0, 0)]);
        let after = list(&[
            (1, 6, u32::MAX),
            (2, 4, 1000),
            (2, 6, 7),
            (8, 5, 2000),
            (16, 7, 0),
            (32, 0, 0),
        ]);
        let other = |number| move |of| if of == 0 { number } else { of };
        assert_eq!(*renumbered(&before, other(1000), other(2000)), after);
    }

    #[test]
    fn entries_of_one_id_are_merged() {
        let before = list(&[(2, 4, 0), (2, 1, 7), (2, 2, 1000), (8, 4, 0), (8, 1, 1000)]);
        let after = list(&[(2, 6, 1000), (2, 1, 7), (8, 5, 1000)]);
        let other = |of| if of == 0 { 1000 } else { of };
        assert_eq!(*renumbered(&before, other, other), after);
    }

    #[test]
    fn a_value_that_is_not_a_list_stays() {
        let odd = [&list(&[(2, 4, 0)])[..], b"x"].concat();
        for value in [&b""[..], b"abc", &odd] {
            assert_eq!(*renumbered(value, |_| 9, |_| 9), *value);
        }
        assert!(is_acl(b"system.posix_acl_default") && !is_acl(b"user.x"));
    }
}
