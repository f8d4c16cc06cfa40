//! Locates the members of a tar archive in one pass over the headers, seeking past the data.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

use tar::{EntryType, Header, PaxExtensions};

const BLOCK: u64 = 512;
/// Maximum members of an archive. An image has a few per layer.
const MEMBERS_MAX: usize = 65_536;
/// Maximum size of a long name or an extended header, in bytes.
const EXTENDED_LEN_MAX: u64 = 1 << 20;
/// Maximum length of a name, in bytes (`PATH_MAX`).
const NAME_LEN_MAX: usize = 4096;
/// Maximum links followed.
const LINKS_MAX: usize = 16;

/// Location of a member's data in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// Offset from the start of the archive, in bytes.
    pub(super) offset: u64,
    /// Size in bytes.
    pub(super) size: u64,
}

#[derive(Debug)]
enum ArchiveMember {
    File(Member),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
}

/// Members of an archive by name. The last of equal names wins, as in unpacking.
#[derive(Debug, Default)]
pub(super) struct Members {
    entries: HashMap<Vec<u8>, ArchiveMember>,
}

/// Overrides from the headers that precede a member.
#[derive(Default)]
struct MemberOverrides {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Members {
    /// Reads all headers of the archive.
    pub(super) fn scan(file: &mut (impl Read + Seek)) -> io::Result<Self> {
        let end = file.seek(SeekFrom::End(0))?;
        let mut members = Self::default();
        let mut extended = MemberOverrides::default();
        let mut at = 0;
        while at + BLOCK <= end {
            file.seek(SeekFrom::Start(at))?;
            let mut block = [0; 512];
            file.read_exact(&mut block)?;
            if block.iter().all(|&byte| byte == 0) {
                break;
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let size = match extended.size {
                Some(size) if !is_extended(header.entry_type()) => size,
                _ => header.entry_size()?,
            };
            let data = at + BLOCK;
            at = size
                .checked_next_multiple_of(BLOCK)
                .and_then(|len| data.checked_add(len))
                .filter(|_| data.checked_add(size).is_some_and(|last| last <= end))
                .ok_or_else(|| wrong("it is cut short, or is no tar archive"))?;
            if is_extended(header.entry_type()) {
                extended.read(header.entry_type(), size, file)?;
            } else {
                let member = Member { offset: data, size };
                members.add(header, std::mem::take(&mut extended), member)?;
            }
        }
        Ok(members)
    }

    /// Finds the file `name`, following links within the archive.
    pub(super) fn find(&self, name: &[u8]) -> Option<Member> {
        let mut name = clean(name)?;
        for _ in 0..LINKS_MAX {
            match self.entries.get(&name)? {
                ArchiveMember::File(member) => return Some(*member),
                ArchiveMember::HardLink(target) => name = clean(target)?,
                ArchiveMember::Symlink(target) if target.starts_with(b"/") => return None,
                ArchiveMember::Symlink(target) => {
                    let dir = name.iter().rposition(|&b| b == b'/').unwrap_or(0);
                    let mut path = name.get(..dir).unwrap_or(&[]).to_vec();
                    path.push(b'/');
                    path.extend_from_slice(target);
                    name = clean(&path)?;
                }
            }
        }
        None
    }

    fn add(
        &mut self,
        header: &Header,
        extended: MemberOverrides,
        member: Member,
    ) -> io::Result<()> {
        let name = extended.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            extended
                .link
                .clone()
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default()
        };
        let entry = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => ArchiveMember::File(member),
            EntryType::Symlink => ArchiveMember::Symlink(link()),
            EntryType::Link => ArchiveMember::HardLink(link()),
            _ => return Ok(()),
        };
        let Some(name) = clean(&name) else { return Ok(()) };
        let too_long = matches!(&entry, ArchiveMember::Symlink(l) | ArchiveMember::HardLink(l)
            if l.len() > NAME_LEN_MAX);
        if too_long || name.len() > NAME_LEN_MAX || self.entries.len() >= MEMBERS_MAX {
            return Err(wrong("it has more members, or longer names, than any image's archive"));
        }
        self.entries.insert(name, entry);
        Ok(())
    }
}

impl MemberOverrides {
    fn read(&mut self, kind: EntryType, size: u64, file: &mut impl Read) -> io::Result<()> {
        if size > EXTENDED_LEN_MAX {
            return Err(wrong("it has a header of more than 1 MiB"));
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes)?;
        match kind {
            EntryType::GNULongName => self.name = Some(until_nul(bytes)),
            EntryType::GNULongLink => self.link = Some(until_nul(bytes)),
            EntryType::XHeader => {
                for record in PaxExtensions::new(&bytes) {
                    let record = record?;
                    let value = record.value_bytes();
                    match record.key_bytes() {
                        b"path" => self.name = Some(value.to_vec()),
                        b"linkpath" => self.link = Some(value.to_vec()),
                        b"size" => {
                            let size = std::str::from_utf8(value).ok().and_then(|s| s.parse().ok());
                            self.size = Some(size.ok_or_else(|| wrong("a size is no number"))?);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_extended(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::GNULongName
            | EntryType::GNULongLink
            | EntryType::XHeader
            | EntryType::XGlobalHeader
    )
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    bytes.truncate(len);
    bytes
}

/// Removes `.`, `..` and repeated slashes from a name; `None` if it leads out of the archive.
fn clean(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn check_sum(header: &Header) -> io::Result<()> {
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        // The checksum field itself counts as spaces.
        .map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u32::from(byte) })
        .sum();
    match header.cksum() {
        Ok(found) if found == sum => Ok(()),
        _ => Err(wrong("it is no tar archive: a header's sum is wrong")),
    }
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.set_size(0);
                builder.append_link(&mut header, name, text).unwrap();
            } else {
                header.set_size(text.len() as u64);
                builder.append_data(&mut header, name, text.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn text(bytes: &[u8], member: Member) -> &str {
        let start = usize::try_from(member.offset).unwrap();
        std::str::from_utf8(&bytes[start..start + usize::try_from(member.size).unwrap()]).unwrap()
    }

    #[test]
    fn members_are_found_through_links_and_long_names() {
        let long = "d/".repeat(100) + "layer.tar";
        let bytes = archive(&[
            ("./a/layer.tar", EntryType::Regular, "old"),
            ("a/layer.tar", EntryType::Regular, "one"),
            ("b/layer.tar", EntryType::Symlink, "../a/layer.tar"),
            ("c/layer.tar", EntryType::Link, "b/layer.tar"),
            (&long, EntryType::Regular, "long"),
            ("out", EntryType::Symlink, "../../a/layer.tar"),
            ("round", EntryType::Symlink, "round"),
            ("absolute", EntryType::Symlink, "/a/layer.tar"),
        ]);
        let members = Members::scan(&mut Cursor::new(&bytes)).unwrap();
        for name in ["a/layer.tar", "b/layer.tar", "./c//layer.tar"] {
            assert_eq!(text(&bytes, members.find(name.as_bytes()).unwrap()), "one");
        }
        assert_eq!(text(&bytes, members.find(long.as_bytes()).unwrap()), "long");
        for name in ["out", "round", "absolute", "gone", "../a/layer.tar"] {
            assert_eq!(members.find(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn truncated_or_invalid_archives_are_refused() {
        let bytes = archive(&[("a", EntryType::Regular, &"x".repeat(2000))]);
        for len in 512..2512 {
            assert!(Members::scan(&mut Cursor::new(&bytes[..len])).is_err(), "{len}");
        }
        assert!(Members::scan(&mut Cursor::new(&[7; 4096])).is_err());
        let mut bomb = Header::new_gnu();
        bomb.set_entry_type(EntryType::XHeader);
        bomb.set_size(8 << 30);
        bomb.set_cksum();
        assert!(Members::scan(&mut Cursor::new(bomb.as_bytes())).is_err());
    }
}
