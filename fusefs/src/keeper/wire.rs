//! The protocol between keeper and servers: small, versioned JSON messages.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::KeeperError;
use crate::kind::ConnectionKind;

/// Protocol version; messages of any other version are refused.
pub const VERSION: u32 = 1;
/// Maximum length of a message, in bytes.
pub(super) const MESSAGE_LEN_MAX: usize = 64 << 10;
/// Maximum descriptors in one message.
pub(super) const DESCRIPTORS_MAX: usize = 16;

/// How to become the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// Wait until the current server has exited.
    WhenFree,
    /// Now: ask the current server to leave, and kill it if it does not.
    TakeOver,
}

/// Messages to the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(super) enum Ask {
    /// Claim the session.
    Claim { how: Claim },
    /// The server is ready: it answers the kernel.
    Serving {
        /// Whether a descriptor store also holds the session's descriptors.
        #[serde(default)]
        stored: bool,
    },
    /// The server is about to exit, as intended.
    Goodbye,
    /// Query the keeper's status.
    Status,
    /// End the session and the keeper.
    Stop,
}

/// Messages from the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
pub(super) enum Tell {
    /// The session is granted. Carries the ledger's descriptor and one per connection.
    Kept { session: String, connections: Vec<ConnectionNote> },
    /// Another process wants to serve: exit soon.
    Leave,
    /// The keeper's status.
    Status(KeeperStatus),
    /// The request is refused.
    Refused { why: String },
}

/// A connection to the kernel, as granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConnectionNote {
    pub(super) kind: ConnectionKind,
    /// The kernel's INIT request, in hexadecimal digits.
    pub(super) init: String,
    /// Its mount point.
    pub(super) mountpoint: Vec<u8>,
}

/// Status of a keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStatus {
    /// Session ID.
    pub session: String,
    /// PID of the keeper.
    pub pid: u32,
    /// PID of the current server.
    pub server: Option<u32>,
    /// Number of processes waiting for the session.
    pub waiting: usize,
    /// Whether requests are refused, because no server came back in time.
    pub refusing: bool,
    /// How often a server exited without a goodbye.
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
    fn a_server_that_does_not_send_the_stored_flag_is_understood() {
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
