//! Shows one user and one group as others. The mapping is many-to-one, which the kernel's idmapped
//! mounts do not support.

use std::borrow::Cow;

use inlay_store::acl;
use inlay_store::format::Attr;

/// Shows the files of one user as another's, and the same for a group. All other owners are
/// unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerAlias {
    /// User mapping.
    pub user: Renumber,
    /// Group mapping.
    pub group: Renumber,
}

/// A mapping of one ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renumber {
    /// ID in the snapshot.
    pub from: u32,
    /// ID shown instead.
    pub to: u32,
}

impl Renumber {
    fn of(self, number: u32) -> u32 {
        if number == self.from { self.to } else { number }
    }
}

impl OwnerAlias {
    pub(super) fn attr(self, attr: Attr) -> Attr {
        Attr { uid: self.user.of(attr.uid), gid: self.group.of(attr.gid), ..attr }
    }

    /// Maps the value of the extended attribute `name`; only ACLs contain IDs.
    pub(super) fn xattr<'a>(self, name: &[u8], value: &'a [u8]) -> Cow<'a, [u8]> {
        if acl::is_acl(name) {
            acl::renumbered(value, |user| self.user.of(user), |group| self.group.of(group))
        } else {
            value.into()
        }
    }
}
