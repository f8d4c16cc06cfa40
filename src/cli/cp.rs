//! `inlay cp`: files from this host into a sandbox, and back.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::Serialize;
use tokio::sync::mpsc;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::inside::{Inside, Where};
use super::output;
use super::sandbox::path_of;
use crate::copy::{CopyError, Owners, PIECES, Piece, PieceReader, PieceWriter, Root, pack, unpack};
use crate::daemon::{Client, CopiedInto, DaemonError, PieceSender, word};

/// What stands for standard input and output, as a tar archive.
const STREAM: &str = "-";

/// Copy files from this host into a sandbox, or back.
///
/// As with cp: into the target if that is a directory, else to that name. With '-', a tar archive is
/// read from standard input, or written to standard output.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cp ./app a:/project
  inlay cp a:/project/out.txt .
  inlay cp a:/project - | tar t")]
pub(super) struct CpArgs {
    /// SANDBOX:/PATH, a path of this host, or -
    from: OsString,
    /// SANDBOX:/PATH, a path of this host, or -
    to: OsString,
    /// Keep owners, by their numbers [default: root in a sandbox, you on this host]
    #[arg(long, short)]
    archive: bool,
}

pub(super) fn cp(global: &Global, args: &CpArgs) -> Result<(), CliError> {
    let copied = match (Where::parse(&args.from), Where::parse(&args.to)) {
        (Where::Here(from), Where::Inside(to)) => into(global, &from, &to, args.archive)?,
        (Where::Inside(from), Where::Here(to)) => out(global, &from, &to, args.archive)?,
        _ => {
            let text = "one of the two must be SANDBOX:/PATH, and the other a path of this host";
            return Err(CliError::Usage(text.to_owned()));
        }
    };
    if args.to != STREAM && !global.quiet {
        output::print(global.format(), &copied, |out| {
            write!(out, "{} objects, {}", copied.objects, output::bytes(copied.bytes))?;
            match copied.left_out {
                0 => writeln!(out),
                left => writeln!(out, "; {left} left out: sockets, devices, or gone meanwhile"),
            }
        })?;
    }
    Ok(())
}

/// What was copied.
#[derive(Debug, Clone, Copy, Serialize)]
struct Copied {
    objects: u64,
    bytes: u64,
    left_out: u64,
}

fn files(inside: &Inside, archive: bool) -> String {
    let path = percent_encode(inside.path.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
    let owners = if archive { "&owners=kept" } else { "" };
    format!("{}?path={path}{owners}", path_of(&inside.sandbox, word::FILES))
}

fn into(global: &Global, from: &Path, to: &Inside, archive: bool) -> Result<Copied, CliError> {
    let path = files(to, archive);
    let from = if from == Path::new(STREAM) { None } else { Some(std::path::absolute(from)?) };
    // Tried again, it would send what is left of standard input: nothing.
    with_daemon(global, None, |client, _| Ok(send(client, &path, from.as_deref())))?
}

fn send(client: &Client, path: &str, from: Option<&Path>) -> Result<Copied, CliError> {
    let packer = std::sync::Mutex::new(None);
    let fill = |sender: PieceSender| {
        let from = from.map(Path::to_path_buf);
        let packing = thread::spawn(move || packed(from.as_deref(), sender));
        if let Ok(mut packer) = packer.lock() {
            *packer = Some(packing);
        }
    };
    let answer = client.wait(client.send(path, fill));
    let packing = packer.into_inner().ok().flatten().map(thread::JoinHandle::join);
    // What is wrong here is the cause of what is wrong there.
    let left_out = match packing {
        Some(Ok(packed)) => packed?,
        Some(Err(_)) | None => 0,
    };
    let copied: CopiedInto = serde_json::from_slice(&answer?)
        .map_err(|error| DaemonError::Conversation(error.to_string()))?;
    let left_out = copied.left_out + left_out;
    Ok(Copied { objects: copied.objects, bytes: copied.bytes, left_out })
}

/// Sends an archive. Returns what was left out of it.
fn packed(from: Option<&Path>, sender: PieceSender) -> Result<u64, CliError> {
    let failed = sender.clone();
    let mut out = PieceWriter::new(sender);
    let outcome = match from {
        Some(path) => {
            let root = Root::open(Path::new("/")).map_err(DaemonError::from)?;
            pack(&root, path, &mut out).map(|packed| packed.left_out)
        }
        None => io::copy(&mut io::stdin().lock(), &mut out).map(|_| 0).map_err(CopyError::Read),
    };
    let outcome =
        outcome.and_then(|left_out| out.finish().map(|()| left_out).map_err(CopyError::Write));
    match outcome {
        // The daemon says why it does not want more.
        Err(CopyError::Write(_)) => Ok(0),
        Err(error) => {
            // Otherwise the archive would look whole.
            let _ = failed.blocking_send(Err(io::Error::other(error.to_string())));
            Err(DaemonError::from(error).into())
        }
        Ok(left_out) => Ok(left_out),
    }
}

fn out(global: &Global, from: &Inside, to: &Path, archive: bool) -> Result<Copied, CliError> {
    let path = files(from, archive);
    let to = if to == Path::new(STREAM) {
        None
    } else {
        let mut absolute = std::path::absolute(to)?.into_os_string();
        // Lost by the above: that a directory is wanted.
        if to.as_os_str().as_encoded_bytes().ends_with(b"/") {
            absolute.push("/");
        }
        Some(PathBuf::from(absolute))
    };
    // Tried again, it would print or write a second time after what it has already.
    with_daemon(global, None, |client, _| {
        Ok(client.wait(received(client, &path, to.clone(), archive)))
    })?
}

async fn received(
    client: &Client,
    path: &str,
    to: Option<PathBuf>,
    archive: bool,
) -> Result<Copied, CliError> {
    let mut pieces = client.read(path).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let unpacking = tokio::task::spawn_blocking(move || unpacked(to.as_deref(), receiver, archive));
    loop {
        let piece = match pieces.next().await {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) => break,
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        let last = piece.is_err();
        if sender.send(piece).await.is_err() || last {
            break;
        }
    }
    drop(sender);
    unpacking.await.map_err(|_| DaemonError::Panicked)?
}

fn unpacked(
    to: Option<&Path>,
    pieces: mpsc::Receiver<Piece>,
    archive: bool,
) -> Result<Copied, CliError> {
    let mut input = PieceReader::new(pieces);
    let Some(to) = to else {
        let bytes = io::copy(&mut input, &mut io::stdout().lock())?;
        return Ok(Copied { objects: 0, bytes, left_out: 0 });
    };
    let owners = if archive {
        Owners::Kept
    } else {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Owners::Given { uid: uid.as_raw(), gid: gid.as_raw() }
    };
    let root = Root::open(Path::new("/")).map_err(DaemonError::from)?;
    let place = root.place(to).map_err(DaemonError::from)?;
    let made = unpack(&place, input, owners).map_err(DaemonError::from)?;
    Ok(Copied { objects: made.objects, bytes: made.bytes, left_out: made.left_out })
}
