//! PAX extended headers: records of `LENGTH KEY=VALUE\n` that say what a tar header can't.
//!
//! The format is POSIX.1-2017's (`pax`, "pax Header Block"); the keys beyond it are those of star
//! (`SCHILY.`), libarchive (`LIBARCHIVE.`) and GNU tar (`GNU.sparse.`).

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

/// What extended headers say of an entry. What they don't mention is in the entry's own header.
#[derive(Debug, Clone, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) device_major: Option<u64>,
    pub(super) device_minor: Option<u64>,
    pub(super) socket: bool,
    xattrs: Vec<Xattr>,
    /// Texts of ACLs, by the attributes that they stand for.
    acls: Vec<(&'static [u8], Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

impl Extended {
    /// Takes the records of one extended header; later ones win.
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

    /// What of a global header is kept: what is small and makes sense for many entries.
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
            b"SCHILY.acl.access" => self.acls.push((b"system.posix_acl_access", value.into())),
            b"SCHILY.acl.default" => self.acls.push((b"system.posix_acl_default", value.into())),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((gnu_name(name), value.into()));
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name: Vec<u8> = percent_encoding::percent_decode(name).collect();
                    let value = BASE64.decode(value).map_err(drop)?;
                    self.xattrs.push((name.into(), value.into()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value)?;
                }
            }
        }
        Ok(())
    }

    /// The attributes, ACLs among them. An ACL that is there as an attribute, too, is taken from
    /// that: it is exact, while the text may name users that only the writer knew.
    pub(super) fn take_xattrs(&mut self) -> Result<Vec<Xattr>, String> {
        let mut xattrs = std::mem::take(&mut self.xattrs);
        // Of equal ones the last counts.
        for (name, text) in std::mem::take(&mut self.acls).into_iter().rev() {
            if xattrs.iter().any(|(known, _)| **known == *name) {
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
        Ok(xattrs)
    }
}

/// The first record's key and value, and the records behind it.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let len = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=').filter(|&at| at > 0)?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, rest))
}

/// GNU tar writes `%` and `=` of an attribute's name as `%25` and `%3D`, and nothing else so.
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

    fn read(records: &[Vec<u8>]) -> Result<Extended, String> {
        let mut extended = Extended::default();
        extended.read(&records.concat())?;
        Ok(extended)
    }

    #[test]
    fn records_may_hold_any_bytes() {
        let extended = read(&[
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
        assert_eq!(extended.xattrs[0], (b"user.a=b%%41"[..].into(), b"x\0\n=y"[..].into()));
        assert_eq!(extended.xattrs[1], (b"user.Ab"[..].into(), b"\0\x01\x02\xff"[..].into()));
        assert_eq!(extended.mtime, Some(Timestamp { secs: -2, nanos: 500_000_000 }));
        assert_eq!(extended.uid, Some(4_000_000_000));
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
            let mut extended = Extended::default();
            assert!(extended.read(wrong).is_err(), "{}", wrong.escape_ascii());
        }
    }
}
