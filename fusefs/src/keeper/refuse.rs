//! Answers every request with an error while no server comes back, so that programs get EIO instead
//! of hanging forever.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, read, write};

use super::device::Connection;
use crate::inflight;
use crate::ledger::{Ledger, LedgerError};
use crate::notify;
use crate::raw::clone_device;

/// Size of the largest write that any server may have negotiated, with its header.
const REQUEST_ROOM: usize = (16 << 20) + 2 * 4096;
const IN_HEADER_LEN: usize = 40;
/// Requests of one connection answered before the others get a turn.
const AT_ONCE: usize = 64;

/// What a request needs, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    NoAnswer,
    Close { handle: u64 },
    CloseDirectory,
    Other,
}

/// Answers the kernel's requests with errors.
pub(super) struct Refuser {
    /// The keeper's own open file descriptions, which are non-blocking; those granted to servers
    /// block.
    devices: Vec<OwnedFd>,
    ledger: Ledger,
    request: Vec<u8>,
}

impl Refuser {
    /// Takes over from a dead server; the requests it left unanswered come again.
    pub(super) fn begin(connections: &[Connection], ledger: OwnedFd) -> Result<Self, LedgerError> {
        let (mut ledger, _) = Ledger::open(ledger)?;
        let mut devices = Vec::new();
        for connection in connections {
            let device = clone_device(&connection.device)?;
            if let Err(error) = notify::resend(&device) {
                // Linux before 6.9: the requests in flight are in the ledger's file.
                tracing::info!(%error, kind = %connection.kind, "the kernel can't resend requests");
            }
            devices.push(device);
        }
        let file = ledger.shared_file();
        for (kind, text) in inflight::unanswered(&file)? {
            let of_kind = |connection: &&Connection| connection.kind == kind;
            if let Some(connection) = connections.iter().find(of_kind)
                && let Some((unique, wants)) = parse(text.bytes())
            {
                settle(&mut ledger, &connection.device, unique, wants)?;
            }
        }
        inflight::clear(&file)?;
        Ok(Self { devices, ledger, request: vec![0; REQUEST_ROOM] })
    }

    /// Returns the descriptors to poll for requests.
    pub(super) fn devices(&self) -> &[OwnedFd] {
        &self.devices
    }

    /// Answers the pending requests.
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
        settle(&mut self.ledger, device, unique, wants).map_err(|_| Errno::AGAIN)
    }
}

/// Answers a request: a close with success, anything else with EIO.
fn settle(ledger: &mut Ledger, device: impl AsFd, unique: u64, wants: Wants) -> io::Result<()> {
    let error = match wants {
        Wants::NoAnswer => return Ok(()),
        Wants::CloseDirectory => 0,
        Wants::Close { handle } => {
            // A large file that is closed now must not count as open for the next server.
            if let Some(record) = ledger.place_of(handle)
                && let Err(error) = ledger.remove(record)
            {
                tracing::warn!(%error, "can't remove a closed file from the ledger; it stays until the slot is released");
            }
            0
        }
        Wants::Other => libc::EIO,
    };
    answer(device, unique, error)
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
        // The caller was interrupted.
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
