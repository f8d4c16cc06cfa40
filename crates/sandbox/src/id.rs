//! The id of a sandbox, which is also its name on disk.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const PREFIX: &str = "sb-";
const RANDOM_LEN: usize = 6;

/// `sb-` and 12 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// A string that is not a sandbox id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a sandbox id: sb- and 12 hexadecimal digits")]
pub struct NoSandboxId(String);

impl SandboxId {
    /// Returns a random id: 48 bits from the kernel, so collisions are negligible.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; RANDOM_LEN];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        if got != RANDOM_LEN {
            return Err(io::Error::other("the kernel gives no random bytes"));
        }
        Ok(Self(format!("{PREFIX}{}", hex::encode(bytes))))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = NoSandboxId;

    fn from_str(text: &str) -> Result<Self, NoSandboxId> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match text.strip_prefix(PREFIX) {
            Some(digits) if digits.len() == 2 * RANDOM_LEN && digits.bytes().all(is_digit) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(NoSandboxId(text.to_owned())),
        }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = NoSandboxId;

    fn try_from(text: String) -> Result<Self, NoSandboxId> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandbox_ids_round_trip_and_malformed_ones_are_refused() {
        let id = SandboxId::random().unwrap();
        assert_eq!(id.to_string().parse::<SandboxId>().unwrap(), id);
        assert_ne!(SandboxId::random().unwrap(), id);
        for wrong in
            ["", "sb-", "sb-0123456789a", "sb-0123456789abc", "sb-../../../../", "sb-0123456789AB"]
        {
            assert!(wrong.parse::<SandboxId>().is_err(), "{wrong}");
            assert!(serde_json::from_value::<SandboxId>(wrong.into()).is_err());
        }
    }
}
