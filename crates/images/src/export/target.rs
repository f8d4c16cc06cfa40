//! Parses export targets of the command line: `tar:FILE`, `dir:PATH`, `oci:DIR`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::error::ExportError;

/// Destination of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `tar:FILE`: a tar archive in a file. An existing file is replaced on completion.
    Tar(PathBuf),
    /// `tar:-`: a tar archive on standard output.
    Stdout,
    /// `dir:PATH`: a new or empty directory.
    Dir(PathBuf),
    /// `oci:DIR`: an OCI image layout in a new or empty directory.
    Oci(PathBuf),
}

impl FromStr for Target {
    type Err = ExportError;

    fn from_str(text: &str) -> Result<Self, ExportError> {
        match text.split_once(':') {
            Some(("tar", "-")) => Ok(Self::Stdout),
            Some((kind, path)) if !path.is_empty() => match kind {
                "tar" => Ok(Self::Tar(path.into())),
                "dir" => Ok(Self::Dir(path.into())),
                "oci" => Ok(Self::Oci(path.into())),
                _ => Err(ExportError::Target(text.to_owned())),
            },
            _ => Err(ExportError::Target(text.to_owned())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("tar:-"),
            Self::Tar(path) => write!(f, "tar:{}", path.display()),
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Oci(path) => write!(f, "oci:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_shown_as_it_was_written() {
        for text in ["tar:-", "tar:a/b.tar", "dir:/x", "dir:a:b", "oci:layout"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_told_the_forms() {
        for text in ["", "x", "/x", "dir:", "zip:x", "tar"] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("dir:PATH"), "{error}");
        }
    }
}
