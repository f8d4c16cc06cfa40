//! Matches paths to leave out of a snapshot against patterns in the syntax of gitignore(5).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::error::CaptureError;

/// Patterns, relative to the captured directory.
#[derive(Debug)]
pub(super) struct Exclude(Option<Gitignore>);

impl Exclude {
    /// Parses `patterns`; the last one that matches a path wins.
    pub(super) fn new(patterns: &[String]) -> Result<Self, CaptureError> {
        if patterns.is_empty() {
            return Ok(Self(None));
        }
        let mut builder = GitignoreBuilder::new("");
        let wrong = |pattern: &str, error: ignore::Error| CaptureError::Pattern {
            pattern: pattern.to_owned(),
            why: error.to_string(),
        };
        for pattern in patterns {
            builder.add_line(None, pattern).map_err(|error| wrong(pattern, error))?;
        }
        let built = builder.build().map_err(|error| wrong(&patterns.join(" "), error))?;
        Ok(Self((!built.is_empty()).then_some(built)))
    }

    /// Reports whether there are no patterns.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the pattern that excludes `path`, relative to the captured directory. Does not check
    /// its parents: the content of an excluded directory is never visited.
    pub(super) fn pattern(&self, path: &[u8], is_dir: bool) -> Option<&str> {
        match self.0.as_ref()?.matched(Path::new(OsStr::from_bytes(path)), is_dir) {
            Match::Ignore(glob) => Some(glob.original()),
            Match::None | Match::Whitelist(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(patterns: &[&str], path: &[u8], is_dir: bool) -> bool {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        Exclude::new(&patterns).unwrap().pattern(path, is_dir).is_some()
    }

    #[test]
    fn patterns_are_those_of_git() {
        assert!(excludes(&["node_modules"], b"a/b/node_modules", true));
        assert!(excludes(&["target/"], b"target", true));
        assert!(!excludes(&["target/"], b"target", false));
        assert!(excludes(&["/top"], b"top", false));
        assert!(!excludes(&["/top"], b"a/top", false));
        assert!(excludes(&["*.log", "!keep.log"], b"x.log", false));
        assert!(!excludes(&["*.log", "!keep.log"], b"d/keep.log", false));
        assert!(excludes(&["a/**/z"], b"a/b/c/z", false));
        assert!(!excludes(&["# note", ""], b"# note", false));
        assert!(excludes(&["*.bin"], b"\xff.bin", false));
    }

    #[test]
    fn invalid_patterns_are_refused() {
        let error = Exclude::new(&["[z-a]".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("[z-a]"), "{error}");
    }
}
