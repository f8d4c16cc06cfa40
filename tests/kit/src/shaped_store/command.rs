//! The lines that a shaped store understands, and its longer answers.

use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::link::{LinkProfile, ProfileError};
use crate::proxy::{Seen, Summary};

/// What one line asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// `link PROFILE [SEED]`: another link from now on.
    Link(LinkProfile),
    /// `forget`: count anew.
    Forget,
    /// `stats`: sums over the requests.
    Stats,
    /// `requests`: all of them.
    Requests,
    /// `warm`: the servers' files are read into the page cache.
    Warm,
    /// `quit`: the end.
    Quit,
}

/// What is wrong with a line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(
        "{0:?} is not a command: write link PROFILE [SEED], forget, stats, requests, warm or quit"
    )]
    Unknown(String),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("{0:?} is not a seed: write a whole number below 2^64")]
    Seed(String),
}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(line: &str) -> Result<Self, CommandError> {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["link", profile] => Ok(Self::Link(profile.parse()?)),
            ["link", profile, seed] => {
                let profile: LinkProfile = profile.parse()?;
                let seed = seed.parse().map_err(|_| CommandError::Seed((*seed).into()))?;
                Ok(Self::Link(profile.with_seed(seed)))
            }
            ["forget"] => Ok(Self::Forget),
            ["stats"] => Ok(Self::Stats),
            ["requests"] => Ok(Self::Requests),
            ["warm"] => Ok(Self::Warm),
            ["quit"] => Ok(Self::Quit),
            _ => Err(CommandError::Unknown(line.trim().into())),
        }
    }
}

pub(super) fn stats(summary: &Summary) -> Value {
    json!({
        "requests": summary.requests,
        "bytes_down": summary.bytes_down,
        "bytes_up": summary.bytes_up,
        "first_at_ms": summary.first_at.map(milliseconds),
        "last_at_ms": summary.last_at.map(milliseconds),
        "last_end_ms": summary.last_end.map(milliseconds),
        "most_at_once": summary.most_at_once,
    })
}

pub(super) fn requests(seen: &[Seen]) -> Value {
    let requests: Vec<_> = seen.iter().map(request).collect();
    json!({ "requests": requests })
}

fn request(seen: &Seen) -> Value {
    json!({
        "method": seen.method,
        "path": seen.path,
        "range": seen.range,
        "status": seen.status,
        "bytes_down": seen.down,
        "bytes_up": seen.up,
        "at_ms": milliseconds(seen.at),
        "first_byte_ms": seen.first_byte.map(milliseconds),
        "end_ms": seen.end.map(milliseconds),
    })
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let read = |line: &str| line.parse::<Command>();
        assert_eq!(read("link wan"), Ok(Command::Link(LinkProfile::WAN)));
        assert_eq!(read(" link  wan 7 "), Ok(Command::Link(LinkProfile::WAN.with_seed(7))));
        assert_eq!(read("forget"), Ok(Command::Forget));
        assert_eq!(read("stats\r"), Ok(Command::Stats));
        assert_eq!(read("requests"), Ok(Command::Requests));
        assert_eq!(read("warm"), Ok(Command::Warm));
        assert_eq!(read("quit"), Ok(Command::Quit));
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["", "link", "link wan 1 2", "QUIT", "forget all", "\u{fffd}"] {
            assert_eq!(line.parse::<Command>(), Err(CommandError::Unknown(line.into())));
        }
        let form = CommandError::Profile(ProfileError::Form("moon".into()));
        assert_eq!("link moon".parse::<Command>(), Err(form));
        let seed = CommandError::Seed("-1".into());
        assert_eq!("link wan -1".parse::<Command>(), Err(seed));
    }

    #[test]
    fn requests_are_written_with_milliseconds() {
        let seen = Seen {
            method: "GET".into(),
            path: "/inlay-test/blobs/1".into(),
            range: Some("bytes=0-99".into()),
            status: Some(206),
            up: 0,
            down: 100,
            at: Duration::from_nanos(1_234_567),
            first_byte: Some(Duration::from_millis(51)),
            end: None,
        };
        let expected = json!({ "requests": [{
            "method": "GET",
            "path": "/inlay-test/blobs/1",
            "range": "bytes=0-99",
            "status": 206,
            "bytes_down": 100,
            "bytes_up": 0,
            "at_ms": 1.235,
            "first_byte_ms": 51.0,
            "end_ms": null,
        }]});
        assert_eq!(requests(&[seen]), expected);
    }
}
