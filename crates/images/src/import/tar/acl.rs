//! Converts POSIX ACLs from their text form in tar archives to the xattr value used by Linux.
//!
//! The text has entries such as `user:1000:rwx`, separated by newlines or commas. star appends the
//! numeric id of a named user or group as a fourth field. `include/uapi/linux/posix_acl_xattr.h`
//! defines the value: a version, then tag, permissions and id of each entry.

use super::number::decimal;

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// Converts the text to an attribute value; `None` for an ACL without entries.
pub(super) fn from_text(text: &[u8]) -> Result<Option<Vec<u8>>, ()> {
    let mut entries = text
        .split(|b| matches!(b, b'\n' | b','))
        .map(|entry| entry.split(|&b| b == b'#').next().unwrap_or(&[]).trim_ascii())
        .filter(|entry| !entry.is_empty())
        .map(entry)
        .collect::<Result<Vec<_>, ()>>()?;
    if entries.is_empty() {
        return Ok(None);
    }
    // The kernel requires this order.
    entries.sort_by_key(|&(tag, _, id)| (tag, id));
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Ok(Some(value))
}

fn entry(text: &[u8]) -> Result<(u16, u16, u32), ()> {
    let mut parts = text.split(|&b| b == b':').map(<[u8]>::trim_ascii);
    let mut part = || parts.next();
    let kind = part().unwrap_or(&[]);
    let who = part().ok_or(())?;
    // `other:r-x` and `mask:r-x` may omit the empty field in the middle.
    let rights = match part() {
        Some(rights) => rights,
        None if matches!(kind, b"o" | b"other" | b"m" | b"mask") => {
            return Ok((if kind.starts_with(b"o") { OTHER } else { MASK }, rights_of(who)?, NO_ID));
        }
        None => return Err(()),
    };
    let number = part().unwrap_or(who);
    let id = || decimal(number).or_else(|| decimal(who)).or((who == b"root").then_some(0));
    let id = || id().and_then(|id| u32::try_from(id).ok()).filter(|&id| id != NO_ID).ok_or(());
    let (tag, id) = match (kind, who) {
        (b"u" | b"user", b"") => (USER_OBJ, NO_ID),
        (b"u" | b"user", _) => (USER, id()?),
        (b"g" | b"group", b"") => (GROUP_OBJ, NO_ID),
        (b"g" | b"group", _) => (GROUP, id()?),
        (b"m" | b"mask", b"") => (MASK, NO_ID),
        (b"o" | b"other", b"") => (OTHER, NO_ID),
        _ => return Err(()),
    };
    Ok((tag, rights_of(rights)?, id))
}

fn rights_of(text: &[u8]) -> Result<u16, ()> {
    text.iter().try_fold(0, |rights, letter| match letter {
        b'r' => Ok(rights | 4),
        b'w' => Ok(rights | 2),
        b'x' => Ok(rights | 1),
        b'-' => Ok(rights),
        _ => Err(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn text_becomes_the_kernels_value() {
        let all = NO_ID;
        let expected = value(&[
            (USER_OBJ, 7, all),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, all),
            (GROUP, 4, 7),
            (MASK, 7, all),
            (OTHER, 0, all),
        ]);
        for text in [
            "user::rwx\nuser:1000:rw-\ngroup::r-x\ngroup:7:r--\nmask::rwx\nother::---\n",
            "u::rwx,g::r-x,o::---,m::rwx,g:7:r,u:1000:rw",
            "user::rwx,user:lisa:rw-:1000,group::r-x,group:staff:r--:7,mask:rwx,other:---",
            "user::rwx\nuser:1000:rw-\t#effective:rw-\ngroup::r-x\ngroup:7:r--\nmask::rwx\nother::",
        ] {
            assert_eq!(from_text(text.as_bytes()), Ok(Some(expected.clone())), "{text}");
        }
        assert_eq!(from_text(b""), Ok(None));
    }

    #[test]
    fn acls_without_numeric_ids_or_with_invalid_entries_are_refused() {
        for text in
            ["user:lisa:rwx", "x::rwx", "user::rwz", "user", "user:4294967295:r", "mask:5:r"]
        {
            assert_eq!(from_text(text.as_bytes()), Err(()), "{text}");
        }
    }
}
