//! `inlay mount` and `umount` in sandboxes.

use std::time::Duration;

use inlay_mounts::{Changes, PathText, Umount};
use inlay_store::ids::SnapshotId;
use serde::Serialize;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::mount::{MountArgs, UmountArgs};
use super::output::{self, escaped};
use super::sandbox::path_of;
use super::sandbox_path::Inside;
use crate::daemon::{
    CacheUse, ClientError, ErrorKind, IntoView, MountInto, MountedIn, UmountFrom, UmountedFrom,
    word,
};

/// Timeout of a mount, most of it for fetching the index.
const MOUNT_LIMIT: Duration = Duration::from_mins(5);
const UMOUNT_LIMIT: Duration = Duration::from_mins(1);

pub(super) fn mount(global: &Global, args: &MountArgs, into: &Inside) -> Result<(), CliError> {
    let only_here = [
        ("--upper", args.upper.is_some()),
        ("--scratch", args.scratch),
        ("--options", !args.options.is_empty()),
        ("--foreground", args.foreground),
    ];
    if let Some((word, _)) = only_here.into_iter().find(|(_, given)| *given) {
        return Err(CliError::Usage(format!("{word} is for mounts on this host's directories")));
    }
    let request = MountInto {
        snapshot: args.snapshot.clone(),
        store: global.store_ref()?,
        cache: if args.no_cache { CacheUse::None } else { CacheUse::Kept },
        path: PathText::from(&*into.path),
        view: if args.read_only { IntoView::ReadOnly } else { IntoView::Writable },
        owner: args.chown,
        load: args.load()?,
        deadline_ms: u64::try_from(MOUNT_LIMIT.as_millis()).unwrap_or(u64::MAX),
    };
    let path = path_of(&into.sandbox, word::MOUNTS);
    let mounted: MountedIn =
        with_daemon(global, None, |client, _| Ok(client.post(&path, &request, MOUNT_LIMIT)?))?;
    output::print(global.format(), &mounted, |out| {
        writeln!(out, "{} on {}", mounted.snapshot, place(&into.sandbox, &mounted.path))
    })?;
    Ok(())
}

pub(super) fn umount(global: &Global, args: &UmountArgs, from: &Inside) -> Result<(), CliError> {
    let request = UmountFrom {
        path: PathText::from(&*from.path),
        how: if args.lazy { Umount::Lazily } else { Umount::IfFree },
        changes: if args.discard { Changes::Discard } else { Changes::Stay },
    };
    let path = path_of(&from.sandbox, word::MOUNTS);
    let mut asked = false;
    let gone: Option<UmountedFrom> = with_daemon(global, None, |client, _| {
        let again = std::mem::replace(&mut asked, true);
        match client.delete(&path, &request, UMOUNT_LIMIT) {
            Ok(gone) => Ok(Some(gone)),
            // A retry after the daemon died: the next daemon has already completed the unmount.
            Err(ClientError::Refused(answer)) if again && answer.kind == ErrorKind::NotMounted => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    })?;
    let gone = Gone {
        path: gone.as_ref().map_or(request.path, |gone| gone.path.clone()),
        snapshot: gone.as_ref().map(|gone| gone.snapshot),
        in_use: gone.as_ref().is_some_and(|gone| gone.in_use),
        changes_kept: gone.as_ref().map(|gone| gone.changes_kept),
    };
    output::print(global.format(), &gone, |out| {
        write!(out, "{} unmounted", place(&from.sandbox, &gone.path))?;
        if gone.changes_kept == Some(true) {
            write!(out, ", changes are kept as long as the sandbox is")?;
        }
        if gone.in_use {
            write!(out, "; programs that use it go on")?;
        }
        writeln!(out)
    })?;
    Ok(())
}

/// Result of an unmount. Fields are `None` if the daemon died before it responded.
#[derive(Debug, Serialize)]
struct Gone {
    path: PathText,
    snapshot: Option<SnapshotId>,
    in_use: bool,
    changes_kept: Option<bool>,
}

fn place(sandbox: &str, path: &PathText) -> String {
    format!("{sandbox}:{}", escaped(path.to_path().as_os_str().as_encoded_bytes()))
}
