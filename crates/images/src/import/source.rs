//! Parses import sources of the command line: `dir:PATH`, `tar:FILE`, `oci:DIR[:TAG]`, …

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Source of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `dir:PATH`: a directory of this machine.
    Dir(PathBuf),
    /// `tar:FILE`: a tar archive, plain or compressed with gzip or zstd.
    Tar(PathBuf),
    /// `tar:-`: a tar archive from standard input.
    TarStdin,
    /// `oci:DIR[:TAG]`: an image in an OCI layout.
    Oci {
        /// Directory of the layout.
        dir: PathBuf,
        /// Tag of the image; required if the layout has several.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:REF]`: an image in a `docker save` archive.
    DockerArchive {
        /// Path of the archive.
        file: PathBuf,
        /// Name of the image; required if the archive has several.
        reference: Option<String>,
    },
    /// `docker://REF`: an image in a registry.
    Registry(String),
}

/// Error of parsing a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no source; give one of dir:PATH, tar:FILE (tar:- for standard input), \
     oci:DIR[:TAG], docker-archive:FILE[:REF], docker://REF"
)]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let wrong = || SourceError(text.to_owned());
        let (form, rest) =
            text.split_once(':').filter(|(_, rest)| !rest.is_empty()).ok_or_else(wrong)?;
        match form {
            "dir" => Ok(Self::Dir(rest.into())),
            "tar" if rest == "-" => Ok(Self::TarStdin),
            "tar" => Ok(Self::Tar(rest.into())),
            "oci" => {
                let (dir, tag) = split_suffix(rest).ok_or_else(wrong)?;
                Ok(Self::Oci { dir, tag })
            }
            "docker-archive" => {
                let (file, reference) = split_suffix(rest).ok_or_else(wrong)?;
                Ok(Self::DockerArchive { file, reference })
            }
            "docker" => rest
                .strip_prefix("//")
                .filter(|reference| !reference.is_empty())
                .map(|reference| Self::Registry(reference.to_owned()))
                .ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

/// Splits `PATH` or `PATH:REST`. As in skopeo, the first colon ends the path.
fn split_suffix(text: &str) -> Option<(PathBuf, Option<String>)> {
    match text.split_once(':') {
        None => Some((text.into(), None)),
        Some((path, rest)) if !path.is_empty() && !rest.is_empty() => {
            Some((path.into(), Some(rest.to_owned())))
        }
        Some(_) => None,
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = |f: &mut fmt::Formatter<'_>, suffix: &Option<String>| {
            suffix.as_ref().map_or(Ok(()), |suffix| write!(f, ":{suffix}"))
        };
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Tar(path) => write!(f, "tar:{}", path.display()),
            Self::TarStdin => write!(f, "tar:-"),
            Self::Oci { dir, tag } => {
                write!(f, "oci:{}", dir.display())?;
                suffix(f, tag)
            }
            Self::DockerArchive { file, reference } => {
                write!(f, "docker-archive:{}", file.display())?;
                suffix(f, reference)
            }
            Self::Registry(reference) => write!(f, "docker://{reference}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_shown_as_it_was_written() {
        for text in [
            "dir:/srv/root",
            "dir:.",
            "dir:a:b",
            "tar:x.tar.gz",
            "tar:-",
            "oci:/srv/layout",
            "oci:/srv/layout:v1",
            "docker-archive:x.tar",
            "docker-archive:x.tar:debian:12",
            "docker://debian:12",
            "docker://localhost:5000/a/b@sha256:00",
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        assert_eq!(
            "docker-archive:x.tar:debian:12".parse(),
            Ok(Source::DockerArchive { file: "x.tar".into(), reference: Some("debian:12".into()) })
        );
    }

    #[test]
    fn anything_else_is_told_the_forms() {
        for text in [
            "",
            "/srv/root",
            "debian",
            "dir:",
            "docker:x",
            "docker://",
            "oci::t",
            "oci:d:",
            "zip:x",
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains("dir:PATH") && error.contains("docker://REF"), "{error}");
        }
    }
}
