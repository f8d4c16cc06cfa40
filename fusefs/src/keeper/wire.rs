//! What keeper and servers say to each other: small JSON messages with a version.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::KeeperError;
use crate::kind::ConnectionKind;

/// A message of another version is refused.
const VERSION: u32 = 1;
/// The longest message, in bytes.
pub(super) const MESSAGE_LEN_MAX: usize = 64 << 10;
/// The most descriptors in one message.
pub(super) const DESCRIPTORS_MAX: usize = 16;

/// How to become the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// When the one that serves now has ended.
    WhenFree,
    /// Now: the one that serves is asked to leave, and killed if it stays.
    TakeOver,
}

/// What is said to the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(super) enum Ask {
    /// Let me serve.
    Claim { how: Claim },
    /// I serve: the kernel has its answers again.
    Serving {
        /// Whether something else keeps the session's descriptors, too.
        #[serde(default)]
        stored: bool,
    },
    /// I am about to end, and that is well.
    Goodbye,
    /// How are you?
    Status,
    /// End it all.
    Stop,
}

/// What the keeper says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
pub(super) enum Tell {
    /// It is your turn. With it come the ledger's descriptor and one for each connection.
    Kept { session: String, connections: Vec<ConnectionNote> },
    /// Somebody else wants to serve: end soon.
    Leave,
    /// How it is.
    Status(KeeperStatus),
    /// No.
    Refused { why: String },
}

/// A connection to the kernel, as it is handed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConnectionNote {
    pub(super) kind: ConnectionKind,
    /// The kernel's INIT request, in hexadecimal digits.
    pub(super) init: String,
    /// Where it is mounted.
    pub(super) mountpoint: Vec<u8>,
}

/// How a keeper is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStatus {
    /// The session's id.
    pub session: String,
    /// The keeper's process.
    pub pid: u32,
    /// The process that serves now.
    pub server: Option<u32>,
    /// How many wait for their turn.
    pub waiting: usize,
    /// Whether requests are refused, because no server came back in time.
    pub refusing: bool,
    /// How often a server ended without a goodbye.
    pub deaths: u64,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    #[serde(flatten)]
    message: T,
}

#[derive(Deserialize)]
struct AnyVersion {
    v: u32,
}

pub(super) fn encode<T: Serialize>(message: T) -> Result<Vec<u8>, KeeperError> {
    let bytes = serde_json::to_vec(&Envelope { v: VERSION, message })
        .map_err(|error| KeeperError::Message(error.to_string()))?;
    if bytes.len() > MESSAGE_LEN_MAX {
        return Err(KeeperError::Message("longer than may be".into()));
    }
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, KeeperError> {
    let odd = |error: serde_json::Error| KeeperError::Message(error.to_string());
    let AnyVersion { v } = serde_json::from_slice(bytes).map_err(odd)?;
    if v != VERSION {
        return Err(KeeperError::Version { found: v, known: VERSION });
    }
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(odd)?;
    Ok(envelope.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_go_there_and_back() {
        for ask in [
            Ask::Claim { how: Claim::TakeOver },
            Ask::Serving { stored: true },
            Ask::Goodbye,
            Ask::Status,
            Ask::Stop,
        ] {
            assert_eq!(decode::<Ask>(&encode(&ask).unwrap()).unwrap(), ask);
        }
    }

    #[test]
    fn a_server_that_says_nothing_of_what_is_stored_is_understood() {
        let old = decode::<Ask>(br#"{"v":1,"ask":"serving"}"#).unwrap();
        assert_eq!(old, Ask::Serving { stored: false });
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let odd = decode::<Ask>(br#"{"v":2,"ask":"something_new"}"#).unwrap_err();
        assert!(matches!(odd, KeeperError::Version { found: 2, known: 1 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_message(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Ask>(&bytes);
            let _ = decode::<Tell>(&bytes);
        }
    }
}
