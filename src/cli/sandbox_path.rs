//! Parses `SANDBOX:/PATH`, and distinguishes it from a path on this host.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::error::CliError;
use super::output::escaped;

/// A location from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Where {
    /// Path on this host.
    Here(PathBuf),
    /// Path in a sandbox.
    Inside(Inside),
}

/// A path in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inside {
    /// Name or id.
    pub(super) sandbox: String,
    /// Absolute, in the sandbox's mount namespace.
    pub(super) path: PathBuf,
}

impl Where {
    /// Parses `NAME:/PATH` as a path in a sandbox, anything else as a path on this host. `./NAME:/PATH`
    /// is on this host.
    pub(super) fn parse(text: &OsStr) -> Self {
        Inside::find(text).map_or_else(|| Self::Here(text.into()), Self::Inside)
    }
}

impl Inside {
    /// Parses `NAME:/PATH`, and fails with [`CliError::Usage`] for anything else.
    pub(super) fn parse(text: &OsStr) -> Result<Self, CliError> {
        Self::find(text).ok_or_else(|| {
            let text = escaped(text.as_bytes());
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
