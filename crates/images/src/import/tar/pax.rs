//! Parses PAX extended headers: records of `LENGTH KEY=VALUE\n` for values that a tar header cannot
//! hold.
//!
//! POSIX.1-2017 defines the format (`pax`, "pax Header Block"); star (`SCHILY.`), libarchive
//! (`LIBARCHIVE.`) and GNU tar (`GNU.sparse.`) define the additional keys.

use std::collections::{BTreeMap, HashSet};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use inlay_store::format::Timestamp;
use inlay_store::tree::Xattr;

use super::acl;
use super::number::{decimal, time};
use super::sparse::PaxSparse;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Values of an entry's extended headers, which override its own header.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxOverrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) device_major: Option<u64>,
    pub(super) device_minor: Option<u64>,
    pub(super) socket: bool,
    xattrs: Vec<XattrRecord>,
    /// Texts of ACLs, by the attributes they correspond to.
    acls: BTreeMap<&'static [u8], Vec<u8>>,
    pub(super) sparse: PaxSparse,
}

/// A record with an extended attribute.
#[derive(Debug, Clone)]
struct XattrRecord {
    /// The attribute's name, encoded as in the key.
    key: Box<[u8]>,
    /// Whether the key's prefix is libarchive's.
    libarchive: bool,
    value: Box<[u8]>,
}

impl PaxOverrides {
    /// Applies the records of one extended header; later ones win.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), String> {
        // Some writers pad the last record with NULs.
        while records.iter().any(|&b| b != 0) {
            let (key, value, rest) = split_record(records)
                .ok_or_else(|| "a malformed extended header record".to_owned())?;
            self.take(key, value).map_err(|()| {
                format!("the extended header record '{}' has no valid value", key.escape_ascii())
            })?;
            records = rest;
        }
        Ok(())
    }

    /// Returns the values of a global header that are kept: small ones that make sense for many
    /// entries.
    pub(super) fn for_all(&self) -> Self {
        Self { uid: self.uid, gid: self.gid, mtime: self.mtime, ..Self::default() }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ()> {
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let number = || match value {
            [] => Ok(None),
            digits => decimal(digits).map(Some).ok_or(()),
        };
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link_path = text(),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"SCHILY.devmajor" => self.device_major = number()?,
            b"SCHILY.devminor" => self.device_minor = number()?,
            b"SCHILY.filetype" => self.socket = value == b"socket",
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or(())?),
            b"SCHILY.acl.access" => {
                self.acls.insert(b"system.posix_acl_access", value.into());
            }
            b"SCHILY.acl.default" => {
                self.acls.insert(b"system.posix_acl_default", value.into());
            }
            _ => {
                if let Some(key) = key.strip_prefix(b"SCHILY.xattr.") {
                    let (key, value) = (key.into(), value.into());
                    self.xattrs.push(XattrRecord { key, libarchive: false, value });
                } else if let Some(key) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = BASE64.decode(value).map_err(drop)?.into();
                    self.xattrs.push(XattrRecord { key: key.into(), libarchive: true, value });
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the attributes sorted by name, including ACLs; of equal names, the last record wins.
    /// An ACL that is also present as an attribute is taken from the attribute: it is exact, whereas
    /// the text may name users known only to the writer.
    pub(super) fn take_xattrs(&mut self) -> Result<Vec<Xattr>, String> {
        let mut xattrs = decoded(std::mem::take(&mut self.xattrs));
        for (name, text) in std::mem::take(&mut self.acls) {
            if xattrs.contains_key(name) {
                continue;
            }
            let binary = acl::from_text(&text).map_err(|()| {
                format!(
                    "its ACL '{}' is malformed or has users by name only; GNU tar keeps numbers \
                     with --xattrs --xattrs-include='*'",
                    text.escape_ascii()
                )
            })?;
            xattrs.extend(binary.map(|binary| (name.into(), binary.into())));
        }
        Ok(xattrs.into_iter().collect())
    }
}

/// Decodes the attributes' names. libarchive writes each attribute as two records with the same key,
/// which it percent-encodes in both; other writers of `SCHILY.xattr.` use GNU tar's encoding or none.
fn decoded(records: Vec<XattrRecord>) -> BTreeMap<Box<[u8]>, Box<[u8]>> {
    let libarchive: HashSet<Box<[u8]>> = records
        .iter()
        .filter(|record| record.libarchive)
        .map(|record| record.key.clone())
        .collect();
    let name = |key: Box<[u8]>| {
        if libarchive.contains(&key) {
            percent_encoding::percent_decode(&key).collect()
        } else {
            gnu_name(&key)
        }
    };
    records.into_iter().map(|record| (name(record.key), record.value)).collect()
}

/// Splits off the first record: key, value, remaining records.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let len = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=').filter(|&at| at > 0)?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, rest))
}

/// Decodes an attribute's name: GNU tar encodes `%` and `=` as `%25` and `%3D`, and nothing else.
fn gnu_name(name: &[u8]) -> Box<[u8]> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match rest {
            [b'%', b'2', b'5', tail @ ..] => (b'%', tail),
            [b'%', b'3', b'D', tail @ ..] => (b'=', tail),
            _ => (first, tail),
        };
        out.push(byte);
        rest = tail;
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let tail = key.len() + value.len() + 3;
        let mut len = tail + 1;
        while tail + len.to_string().len() != len {
            len += 1;
        }
        [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
    }

    fn read(records: &[Vec<u8>]) -> Result<PaxOverrides, String> {
        let mut extended = PaxOverrides::default();
        extended.read(&records.concat())?;
        Ok(extended)
    }

    #[test]
    fn records_may_hold_any_bytes() {
        let mut extended = read(&[
            record("path", b"first"),
            record("path", b"a\nb=\xff"),
            record("SCHILY.xattr.user.a%3Db%25%41", b"x\0\n=y"),
            record("LIBARCHIVE.xattr.user.%41b", b"AAEC/w"),
            record("mtime", b"-1.5"),
            record("uid", b"4000000000"),
            record("unknown.key", b""),
        ])
        .unwrap();
        assert_eq!(extended.path.as_deref(), Some(&b"a\nb=\xff"[..]));
        let xattrs = extended.take_xattrs().unwrap();
        assert_eq!(xattrs[0], (b"user.Ab"[..].into(), b"\0\x01\x02\xff"[..].into()));
        assert_eq!(xattrs[1], (b"user.a=b%%41"[..].into(), b"x\0\n=y"[..].into()));
        assert_eq!(extended.mtime, Some(Timestamp { secs: -2, nanos: 500_000_000 }));
        assert_eq!(extended.uid, Some(4_000_000_000));
    }

    #[test]
    fn an_attribute_that_libarchive_writes_twice_is_one() {
        let both = |key: &str, base64: &[u8], raw: &[u8]| {
            [
                record(&format!("LIBARCHIVE.xattr.{key}"), base64),
                record(&format!("SCHILY.xattr.{key}"), raw),
            ]
        };
        let named = |name: &[u8], value: &[u8]| (name.into(), value.into());
        let [plain, raw_plain] = both("user.a", b"AP8", b"\0\xff");
        let [encoded, raw_encoded] = both("user.b%20%C3%A9%25%3D", b"eA", b"x");
        for records in [
            [plain.clone(), raw_plain.clone(), encoded.clone(), raw_encoded.clone()],
            [raw_plain, plain, raw_encoded, encoded],
        ] {
            let xattrs = read(&records).unwrap().take_xattrs().unwrap();
            let whole = [named(b"user.a", b"\0\xff"), named("user.b \u{e9}%=".as_bytes(), b"x")];
            assert_eq!(xattrs, whole);
        }
        // Without libarchive's record, the name is what GNU tar or an encoder without escapes wrote.
        let mut other = read(&[record("SCHILY.xattr.user.b%20c", b"x")]).unwrap();
        assert_eq!(other.take_xattrs(), Ok(vec![named(b"user.b%20c", b"x")]));
    }

    #[test]
    fn an_empty_value_takes_an_earlier_one_back() {
        let extended = read(&[record("path", b"x"), record("path", b""), record("size", b"")]);
        assert_eq!(extended.unwrap().path, None);
    }

    #[test]
    fn an_acl_comes_from_its_attribute_or_else_from_its_text() {
        let access = "SCHILY.acl.access";
        let raw = "SCHILY.xattr.system.posix_acl_access";
        let named = record(access, b"user::rw-\nuser:lisa:r--");
        let mut exact = read(&[named.clone(), record(raw, b"binary")]).unwrap();
        let name = &b"system.posix_acl_access"[..];
        assert_eq!(exact.take_xattrs(), Ok(vec![(name.into(), b"binary"[..].into())]));
        let message = read(std::slice::from_ref(&named)).unwrap().take_xattrs().unwrap_err();
        assert!(message.contains("users by name only"), "{message}");
        let mut numbered = read(&[named, record(access, b"user::rw-\nuser:7:r--")]);
        let error = numbered.as_mut().unwrap().take_xattrs();
        assert_eq!(error.unwrap()[0].1.len(), 20);
    }

    #[test]
    fn malformed_records_are_errors() {
        for wrong in [
            &b"x"[..],
            b"5 a=b",
            b"6 a=b\n7",
            b"99 a=b\n",
            b"0 a=b\n",
            b"2 a=b\n",
            b"6 =ab\n",
            b"6 aab\n",
            b"-6 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"10 size=x\n",
            b"11 mtime=x\n",
        ] {
            let mut extended = PaxOverrides::default();
            assert!(extended.read(wrong).is_err(), "{}", wrong.escape_ascii());
        }
    }
}
