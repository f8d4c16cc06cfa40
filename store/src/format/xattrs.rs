//! Encodes and decodes sets of extended attributes.
//!
//! A set is a u32 count, followed by each attribute: u16 length of the name, u32 length of the
//! value, the name, the value. Names are sorted, so that equal sets have equal bytes and are stored
//! once.

use super::error::FormatError;
use super::layout::{XATTR_LIST_LEN_MAX, XATTR_VALUE_LEN_MAX};
use crate::tree::Xattr;

/// The extended attributes of an inode, sorted by name.
#[derive(Clone, Copy, Debug)]
pub struct Xattrs<'a> {
    set: Option<XattrSet<'a>>,
}

/// An encoded set after its count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct XattrSet<'a> {
    count: u32,
    bytes: &'a [u8],
    at: u32,
}

impl<'a> XattrSet<'a> {
    /// Reads the count of the set at the start of `bytes`. `at` is its offset, for error messages.
    pub(crate) fn parse(bytes: &'a [u8], at: u32) -> Result<Self, FormatError> {
        let (count, bytes) = bytes
            .split_first_chunk::<4>()
            .ok_or_else(|| FormatError::corrupt("extended attributes out of range", at))?;
        Ok(Self { count: u32::from_le_bytes(*count), bytes, at })
    }
}

impl<'a> Xattrs<'a> {
    pub(crate) const fn none() -> Self {
        Self { set: None }
    }

    pub(crate) const fn new(set: XattrSet<'a>) -> Self {
        Self { set: Some(set) }
    }

    /// Returns whether the inode has no attributes.
    pub fn is_empty(&self) -> bool {
        self.set.is_none_or(|set| set.count == 0)
    }

    /// Iterates over names and values. Stops after the first error.
    pub fn iter(
        &self,
    ) -> impl Iterator<Item = Result<(&'a [u8], &'a [u8]), FormatError>> + use<'a> {
        let (mut left, mut bytes, at) =
            self.set.map_or((0, &[][..], 0), |set| (set.count, set.bytes, set.at));
        let mut names = 0usize;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let next = take_one(bytes).filter(|(name, _, _)| {
                names += name.len() + 1;
                names <= XATTR_LIST_LEN_MAX
            });
            let Some((name, value, rest)) = next else {
                left = 0;
                return Some(Err(FormatError::corrupt("extended attributes", at)));
            };
            bytes = rest;
            Some(Ok((name, value)))
        })
    }

    /// Returns the value of the attribute `name`.
    pub fn get(&self, name: &[u8]) -> Result<Option<&'a [u8]>, FormatError> {
        for entry in self.iter() {
            let (found, value) = entry?;
            if found == name {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

fn take_one(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name_len, rest) = bytes.split_first_chunk::<2>()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let (name_len, value_len) =
        (usize::from(u16::from_le_bytes(*name_len)), u32::from_le_bytes(*value_len) as usize);
    if name_len == 0 || name_len > 255 || value_len > XATTR_VALUE_LEN_MAX {
        return None;
    }
    let (name, rest) = rest.split_at_checked(name_len)?;
    let (value, rest) = rest.split_at_checked(value_len)?;
    (!name.contains(&0)).then_some((name, value, rest))
}

/// Appends the encoded set of `attributes` to `out`. `attributes` must be sorted by name.
pub(crate) fn write_set(attributes: &[Xattr], out: &mut Vec<u8>) {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&number(attributes.len()));
    for (name, value) in attributes {
        // Names have at most 255 bytes: `Tree` rejects longer ones.
        out.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(&number(value.len()));
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
}
