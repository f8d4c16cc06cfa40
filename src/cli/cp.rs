//! `inlay cp`: copies files between this host and a sandbox as a tar stream.

use std::ffi::OsString;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use inlay_sandbox::copy::{
    CopyError, FilePrivileges, Holes, Keep, Owners, PIECES, Piece, PieceReader, PieceWriter, Root,
    pack, unpack,
};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::Serialize;
use tokio::sync::mpsc;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::output;
use super::sandbox::path_of;
use super::sandbox_path::{Inside, Where};
use crate::daemon::{Client, ClientError, CopiedInto, DaemonError, PieceSender, word};

/// Operand for a tar archive on standard input or output.
const STREAM: &str = "-";

/// Copy files between this host and a sandbox.
///
/// As with cp, copies into the target if it is a directory, otherwise to that name. DIR/. copies the
/// contents of a directory. With '-', reads a tar archive from standard input, or writes one to
/// standard output.
///
/// Preserves contents, permissions, modification times, hard links, holes and extended attributes.
/// Without --archive, copies to this host drop setuid and setgid bits and file capabilities.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cp ./app a:/project
  inlay cp a:/project/out.txt .
  inlay cp a:/project - | tar t")]
pub(super) struct CpArgs {
    /// Source: SANDBOX:/PATH, a path on this host, or '-'
    from: OsString,
    /// Target: SANDBOX:/PATH, a path on this host, or '-'
    to: OsString,
    /// Preserve numeric uid and gid; on this host, also setuid and setgid bits and file capabilities
    /// [default owner: root in a sandbox, the current user on this host]
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
                0 => {}
                left => write!(out, "; {left} left out: sockets, devices, or gone meanwhile")?,
            }
            match copied.attributes_left_out {
                0 => writeln!(out),
                left => writeln!(out, "; {left} extended attributes left out: not allowed there"),
            }
        })?;
    }
    Ok(())
}

/// Result of a copy.
#[derive(Debug, Clone, Copy, Serialize)]
struct Copied {
    objects: u64,
    bytes: u64,
    left_out: u64,
    attributes_left_out: u64,
}

fn files(inside: &Inside, archive: bool) -> String {
    let path = percent_encode(inside.path.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
    let owners = if archive { "&owners=kept" } else { "" };
    format!("{}?path={path}{owners}", path_of(&inside.sandbox, word::FILES))
}

fn into(global: &Global, from: &Path, to: &Inside, archive: bool) -> Result<Copied, CliError> {
    let path = files(to, archive);
    let from = if from == Path::new(STREAM) { None } else { Some(absolute(from)?) };
    // `Ok` prevents a retry: standard input may be consumed already.
    with_daemon(global, None, |client, _| Ok(send(client, &path, from.as_deref())))?
}

fn send(client: &Client, path: &str, from: Option<&Path>) -> Result<Copied, CliError> {
    let packer = std::sync::Mutex::new(None);
    let fill = |sender: PieceSender| {
        let from = from.map(Path::to_path_buf);
        let packing = thread::spawn(move || {
            unless_panicked(sender, |sender| packed(from.as_deref(), sender))
        });
        if let Ok(mut packer) = packer.lock() {
            *packer = Some(packing);
        }
    };
    let answer = client.wait(client.send(path, fill));
    let packing = packer.into_inner().ok().flatten().map(thread::JoinHandle::join);
    // Report a local failure first: it causes the remote one.
    let left_out = match packing {
        Some(Ok(packed)) => packed?,
        Some(Err(_)) => return Err(panicked()),
        // The request failed before its body was needed.
        None => 0,
    };
    let copied: CopiedInto = serde_json::from_slice(&answer?)
        .map_err(|error| ClientError::Conversation(error.to_string()))?;
    let left_out = copied.left_out + left_out;
    let attributes_left_out = copied.attributes_left_out;
    Ok(Copied { objects: copied.objects, bytes: copied.bytes, left_out, attributes_left_out })
}

/// Runs `work`. If it panics, aborts the stream: otherwise the archive would look complete.
fn unless_panicked<T>(
    sender: PieceSender,
    work: impl FnOnce(PieceSender) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let abort = sender.clone();
    catch_unwind(AssertUnwindSafe(|| work(sender))).unwrap_or_else(|_| {
        let error = panicked();
        // Best effort: the daemon may have stopped reading.
        let _ = abort.blocking_send(Err(io::Error::other(error.to_string())));
        Err(error)
    })
}

fn panicked() -> CliError {
    io::Error::other("a thread of this program panicked while copying: a defect").into()
}

/// Sends an archive of `from`, or standard input unmodified. Returns the number of objects left out.
fn packed(from: Option<&Path>, sender: PieceSender) -> Result<u64, CliError> {
    let failed = sender.clone();
    let mut out = PieceWriter::new(sender);
    let outcome = match from {
        Some(path) => {
            let root = Root::open(Path::new("/")).map_err(DaemonError::from)?;
            pack(&root, path, Holes::Kept, &mut out).map(|packed| packed.left_out)
        }
        None => io::copy(&mut io::stdin().lock(), &mut out).map(|_| 0).map_err(CopyError::Read),
    };
    let outcome =
        outcome.and_then(|left_out| out.finish().map(|()| left_out).map_err(CopyError::Write));
    match outcome {
        // The daemon stopped reading; its response has the reason.
        Err(CopyError::Write(_)) => Ok(0),
        Err(error) => {
            // Abort the stream: otherwise the archive would look complete.
            let _ = failed.blocking_send(Err(io::Error::other(error.to_string())));
            Err(DaemonError::from(error).into())
        }
        Ok(left_out) => Ok(left_out),
    }
}

fn out(global: &Global, from: &Inside, to: &Path, archive: bool) -> Result<Copied, CliError> {
    let path = files(from, archive);
    let to = if to == Path::new(STREAM) { None } else { Some(absolute(to)?) };
    // Holes need a tar extension: not for an archive on standard output, which any tar must read.
    let path = if to.is_some() { format!("{path}&holes=kept") } else { path };
    // `Ok` prevents a retry: it would write everything again after the partial output.
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
    unpacking.await.map_err(|_| panicked())?
}

fn unpacked(
    to: Option<&Path>,
    pieces: mpsc::Receiver<Piece>,
    archive: bool,
) -> Result<Copied, CliError> {
    let mut input = PieceReader::new(pieces);
    let Some(to) = to else {
        let bytes = io::copy(&mut input, &mut io::stdout().lock())?;
        return Ok(Copied { objects: 0, bytes, left_out: 0, attributes_left_out: 0 });
    };
    let keep = if archive {
        Keep { owners: Owners::Kept, privileges: FilePrivileges::Kept }
    } else {
        // Security: a sandbox must not create set-id files owned by this user.
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let owners = Owners::Given { uid: uid.as_raw(), gid: gid.as_raw() };
        Keep { owners, privileges: FilePrivileges::Dropped }
    };
    let root = Root::open(Path::new("/")).map_err(DaemonError::from)?;
    let place = root.place(to).map_err(DaemonError::from)?;
    let made = unpack(&place, input, keep).map_err(DaemonError::from)?;
    Ok(Copied {
        objects: made.objects,
        bytes: made.bytes,
        left_out: made.left_out,
        attributes_left_out: made.attributes_left_out,
    })
}

/// Returns the absolute path and keeps its ending: `/` requires a directory, `/.` means its contents.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let given = path.as_os_str().as_encoded_bytes();
    let mut absolute = std::path::absolute(path)?.into_os_string();
    let ended = absolute.as_encoded_bytes().ends_with(b"/");
    if given.ends_with(b"/.") || given == b"." {
        absolute.push(if ended { "." } else { "/." });
    } else if given.ends_with(b"/") && !ended {
        absolute.push("/");
    }
    Ok(absolute.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_while_packing_fails_the_copy_and_aborts_the_stream() {
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let outcome = unless_panicked(sender, |sender| -> Result<u64, CliError> {
            sender.blocking_send(Ok("part".into())).unwrap();
            panic!("on purpose")
        });
        assert!(outcome.unwrap_err().to_string().contains("panicked"));
        assert_eq!(pieces.blocking_recv().unwrap().unwrap(), "part");
        pieces.blocking_recv().unwrap().unwrap_err();
        assert!(pieces.blocking_recv().is_none());
    }
}
