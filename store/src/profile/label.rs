//! The label of a profile, which names one use of a snapshot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An error from parsing a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Too short or too long.
    #[error("'{0}' is not a label: a label has 1 to {max} characters", max = ProfileLabel::LEN_MAX)]
    Length(String),
    /// Contains a character that is not allowed.
    #[error("'{label}' is not a label: '{found}' is not one of a-z A-Z 0-9 . _ -")]
    Character {
        /// The text.
        label: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// Does not start with a letter or a digit.
    #[error("'{0}' is not a label: a label begins with a letter or a digit")]
    Start(String),
}

/// Names the use of a snapshot that a profile describes: `default`, or e.g. the name of a command.
///
/// 1 to 64 characters of `a-z A-Z 0-9 . _ -`, starting with a letter or a digit, so that a label is
/// a single path component and cannot leave its directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProfileLabel(String);

impl ProfileLabel {
    /// The maximum length, in characters.
    pub const LEN_MAX: usize = 64;

    /// Returns the label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ProfileLabel {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl FromStr for ProfileLabel {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let own = || text.to_owned();
        if text.is_empty() || text.chars().count() > Self::LEN_MAX {
            return Err(LabelError::Length(own()));
        }
        let belongs = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if let Some(found) = text.chars().find(|&c| !belongs(c)) {
            return Err(LabelError::Character { label: own(), found });
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(LabelError::Start(own()));
        }
        Ok(Self(own()))
    }
}

impl TryFrom<String> for ProfileLabel {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        text.parse()
    }
}

impl From<ProfileLabel> for String {
    fn from(label: ProfileLabel) -> Self {
        label.0
    }
}

impl fmt::Display for ProfileLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_labels_are_labels() {
        for label in ["default", "python3.12", "npm-run_dev", "3", "X"] {
            assert_eq!(label.parse::<ProfileLabel>().unwrap().as_str(), label);
        }
        assert!("a".repeat(64).parse::<ProfileLabel>().is_ok());
        assert_eq!(ProfileLabel::default().as_str().parse(), Ok(ProfileLabel::default()));
    }

    #[test]
    fn labels_that_could_escape_their_directory_are_refused() {
        let long = "a".repeat(65);
        for label in [
            "", ".", "..", "../a", "a/b", "/a", "-a", "_a", "a b", "a:b", "a%2F", "a\0", "é", &long,
        ] {
            assert!(label.parse::<ProfileLabel>().is_err(), "{label:?}");
        }
    }
}
