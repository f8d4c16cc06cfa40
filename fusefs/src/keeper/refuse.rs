//! Answers every request with an error while no server comes back, so that programs get EIO
//! instead of hanging for ever.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, read, write};

use super::device::Connection;
use crate::ledger::{Ledger, LedgerError};
use crate::notify;
use crate::raw::clone_device;

/// As large as the largest write that any server may have agreed on, and its header.
const REQUEST_ROOM: usize = (16 << 20) + 4096;
const IN_HEADER_LEN: usize = 40;
/// How many requests of one connection are answered before others get a look.
const AT_ONCE: usize = 64;

/// What a request wants, as far as that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    NoAnswer,
    Close { handle: u64 },
    CloseDirectory,
    Other,
}

/// Refuses what the kernel asks.
pub(super) struct Refuser {
    /// Open files of the keeper's own, which do not block: those that servers get do.
    devices: Vec<OwnedFd>,
    ledger: Ledger,
    request: Vec<u8>,
}

impl Refuser {
    /// Takes over from a server that has ended; what it left unanswered comes again.
    pub(super) fn begin(connections: &[Connection], ledger: OwnedFd) -> Result<Self, LedgerError> {
        let (ledger, _) = Ledger::open(ledger)?;
        let mut devices = Vec::new();
        for connection in connections {
            let device = clone_device(&connection.device)?;
            notify::resend(&device)?;
            devices.push(device);
        }
        Ok(Self { devices, ledger, request: vec![0; REQUEST_ROOM] })
    }

    /// What to poll for requests.
    pub(super) fn devices(&self) -> &[OwnedFd] {
        &self.devices
    }

    /// Refuses what is there.
    pub(super) fn refuse(&mut self) {
        for place in 0..self.devices.len() {
            for _ in 0..AT_ONCE {
                match self.refuse_one(place) {
                    Ok(()) | Err(Errno::INTR | Errno::NOENT) => {}
                    Err(_) => break,
                }
            }
        }
    }

    fn refuse_one(&mut self, place: usize) -> Result<(), Errno> {
        let Some(device) = self.devices.get(place) else { return Err(Errno::BADF) };
        let len = read(device, &mut self.request[..])?;
        let request = self.request.get(..len).unwrap_or_default();
        let Some((unique, wants)) = parse(request) else { return Ok(()) };
        let error = match wants {
            Wants::NoAnswer => return Ok(()),
            Wants::CloseDirectory => 0,
            Wants::Close { handle } => {
                // A large file that is closed now must not count as open for the next server.
                if let Some(record) = self.ledger.place_of(handle)
                    && let Err(error) = self.ledger.remove(record)
                {
                    tracing::warn!(%error, "a closed file stays in the ledger");
                }
                0
            }
            Wants::Other => libc::EIO,
        };
        answer(device, unique, error).map_err(|_| Errno::AGAIN)
    }
}

fn parse(request: &[u8]) -> Option<(u64, Wants)> {
    let opcode = u32::from_ne_bytes(*request.get(4..)?.first_chunk()?);
    let unique = u64::from_ne_bytes(*request.get(8..)?.first_chunk()?);
    let wants = match opcode {
        // FORGET, INTERRUPT, NOTIFY_REPLY, BATCH_FORGET
        2 | 36 | 41 | 42 => Wants::NoAnswer,
        18 => Wants::Close {
            handle: u64::from_ne_bytes(*request.get(IN_HEADER_LEN..)?.first_chunk()?),
        },
        29 => Wants::CloseDirectory,
        _ => Wants::Other,
    };
    Some((unique, wants))
}

fn answer(device: impl AsFd, unique: u64, error: i32) -> io::Result<()> {
    let mut reply = [0; 16];
    let fields = 16u32.to_ne_bytes().into_iter().chain((-error).to_ne_bytes());
    for (to, from) in reply.iter_mut().zip(fields.chain(unique.to_ne_bytes())) {
        *to = from;
    }
    match write(device, &reply) {
        // The asker has gone.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_close_names_its_handle_and_short_requests_are_nothing() {
        let mut close = vec![0; 64];
        close[4..8].copy_from_slice(&18u32.to_ne_bytes());
        close[8..16].copy_from_slice(&(1u64 << 63 | 6).to_ne_bytes());
        close[40..48].copy_from_slice(&77u64.to_ne_bytes());
        assert_eq!(parse(&close), Some((1 << 63 | 6, Wants::Close { handle: 77 })));
        assert_eq!(parse(&close[..44]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_parsed(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&bytes);
        }
    }
}
