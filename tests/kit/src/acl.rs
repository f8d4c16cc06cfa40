//! POSIX access control lists as the kernel takes them in `system.posix_acl_*` attributes.

/// One entry of a list: whom it is for, and `rwx` as three bits.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// The file's owner.
    Owner(u16),
    /// The user of this id.
    User(u32, u16),
    /// The file's group.
    OwningGroup(u16),
    /// The group of this id.
    Group(u32, u16),
    /// The most that users and groups of the list get.
    Mask(u16),
    /// Everybody else.
    Other(u16),
}

/// The attribute's value: version 2, then tag, permissions and id of each entry, little-endian.
/// The kernel wants the entries in the order of their tags, and ids in rising order.
pub fn encode(entries: &[Entry]) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let mut value = 2_u32.to_le_bytes().to_vec();
    for entry in entries {
        let (tag, permissions, id) = match *entry {
            Entry::Owner(permissions) => (0x01_u16, permissions, NO_ID),
            Entry::User(id, permissions) => (0x02, permissions, id),
            Entry::OwningGroup(permissions) => (0x04, permissions, NO_ID),
            Entry::Group(id, permissions) => (0x08, permissions, id),
            Entry::Mask(permissions) => (0x10, permissions, NO_ID),
            Entry::Other(permissions) => (0x20, permissions, NO_ID),
        };
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}
