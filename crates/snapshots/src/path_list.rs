//! Parses lists of paths: one per line, optionally with a byte range in front, `OFFSET+LENGTH
//! PATH`.

use std::io::{self, Write};

use super::groups::{Part, PathPart};

/// Parses a list. Accepts any text: empty lines are skipped, and a line without leading slash and
/// range is a path relative to the root, as printed by `tar -t` and `find`.
pub fn read_paths(text: &[u8]) -> Vec<PathPart> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| ranged(line).unwrap_or_else(|| PathPart::whole(line))).collect()
}

/// Parses `OFFSET+LENGTH PATH`, where the path must begin with a slash.
fn ranged(line: &[u8]) -> Option<PathPart> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    let (place, path) = line.split_at_checked(space)?;
    let path = path.strip_prefix(b" ").filter(|path| path.starts_with(b"/"))?;
    let (offset, len) = std::str::from_utf8(place).ok()?.split_once('+')?;
    let (offset, len): (u64, u64) = (number(offset)?, number(len)?);
    let part = Part::Range(offset..offset.checked_add(len)?);
    Some(PathPart { path: path.to_vec(), part })
}

/// Digits only: `parse` would also accept a sign.
fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Writes a list for [`read_paths`]. Returns the number of paths omitted because they contain a
/// line break.
pub fn write_paths<'p>(
    paths: impl IntoIterator<Item = &'p PathPart>,
    out: &mut dyn Write,
) -> io::Result<u64> {
    let mut left_out = 0;
    for PathPart { path, part } in paths {
        if path.contains(&b'\n') {
            left_out += 1;
            continue;
        }
        if let Part::Range(range) = part {
            write!(out, "{}+{} ", range.start, range.end.saturating_sub(range.start))?;
        }
        out.write_all(path)?;
        out.write_all(b"\n")?;
    }
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(path: &str, range: std::ops::Range<u64>) -> PathPart {
        PathPart { path: path.into(), part: Part::Range(range) }
    }

    #[test]
    fn lines_are_paths_or_parts_of_files() {
        let list = read_paths(b"/usr/bin/env\n\n4096+100 /lib/a b\n./etc/passwd\n");
        let expected = [
            PathPart::whole("/usr/bin/env"),
            part("/lib/a b", 4096..4196),
            PathPart::whole("./etc/passwd"),
        ];
        assert_eq!(list, expected);
    }

    #[test]
    fn lines_without_a_valid_range_are_whole_paths() {
        let max = format!("{}+1 /a", u64::MAX);
        for line in
            ["1+2", "1+2 a", "+1+2 /a", "1+ /a", "+2 /a", "-1+2 /a", "1 2 /a", "1+2  /a", &max]
        {
            assert_eq!(read_paths(line.as_bytes()), [PathPart::whole(line)], "{line}");
        }
    }

    #[test]
    fn a_path_with_a_line_break_is_left_out() {
        let paths = [PathPart::whole("/a\nb"), PathPart::whole("/c")];
        let mut text = Vec::new();
        assert_eq!(write_paths(&paths, &mut text).unwrap(), 1);
        assert_eq!(text, b"/c\n");
    }

    proptest! {
        #[test]
        fn a_list_comes_back(
            paths in prop::collection::vec(("/[^\n]{0,20}", any::<Option<(u32, u32)>>()), 0..20),
        ) {
            let paths: Vec<PathPart> = paths
                .into_iter()
                .map(|(path, place)| match place {
                    Some((from, len)) => part(&path, from.into()..u64::from(from) + u64::from(len)),
                    None => PathPart::whole(path),
                })
                .collect();
            let mut text = Vec::new();
            prop_assert_eq!(write_paths(&paths, &mut text).unwrap(), 0);
            prop_assert_eq!(read_paths(&text), paths);
        }
    }
}
