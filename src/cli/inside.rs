//! `SANDBOX:/PATH`: a place inside a sandbox, told from a path of this host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::error::CliError;
use super::output::shown;

/// A place that a user typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Where {
    /// On this host.
    Here(PathBuf),
    /// In a sandbox.
    Inside(Inside),
}

/// A path in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inside {
    /// The sandbox's name or id.
    pub(super) sandbox: String,
    /// Absolute, as the sandbox sees it.
    pub(super) path: PathBuf,
}

impl Where {
    /// `NAME:/PATH` is in a sandbox. A path of this host that looks like it is written `./NAME:/PATH`.
    pub(super) fn parse(text: &OsStr) -> Self {
        Inside::find(text).map_or_else(|| Self::Here(text.into()), Self::Inside)
    }
}

impl Inside {
    /// A place that can only be in a sandbox.
    pub(super) fn parse(text: &OsStr) -> Result<Self, CliError> {
        Self::find(text).ok_or_else(|| {
            let text = shown(text.as_bytes());
            CliError::Usage(format!("'{text}' is not of the form SANDBOX:/PATH"))
        })
    }

    fn find(text: &OsStr) -> Option<Self> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':')?;
        let (sandbox, rest) = bytes.split_at_checked(colon)?;
        let path = rest.strip_prefix(b":").filter(|path| path.starts_with(b"/"))?;
        let sandbox = std::str::from_utf8(sandbox).ok()?;
        let is_name = !sandbox.is_empty() && !sandbox.contains('/');
        is_name.then(|| Self { sandbox: sandbox.to_owned(), path: OsStr::from_bytes(path).into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_and_a_path_are_told_from_a_path() {
        let inside = |sandbox: &str, path: &str| {
            Where::Inside(Inside { sandbox: sandbox.to_owned(), path: path.into() })
        };
        assert_eq!(Where::parse(OsStr::new("b:/project")), inside("b", "/project"));
        assert_eq!(Where::parse(OsStr::new("b:/a:/c")), inside("b", "/a:/c"));
        for here in ["/mnt/b:/c", "./b:/c", "b:c", "b", ":/c", "b:"] {
            assert_eq!(Where::parse(OsStr::new(here)), Where::Here(here.into()), "{here}");
        }
        assert!(Inside::parse(OsStr::new("/mnt")).is_err());
    }
}
