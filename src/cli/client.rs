//! Commands as clients of the daemon: finding it, starting it, and what to warn about.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use inlay_store::cache::Budget;

use super::Global;
use super::daemon::common_words;
use super::duration;
use super::error::CliError;
use crate::daemon::{self, Client, DaemonError, ErrorKind, Keys, Paths, StatusAnswer, StoreRef};

/// How often a command that meets a daemon at its end looks for the next.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

impl Global {
    /// Where the daemon of the state keeps its things.
    pub(super) fn paths(&self) -> Result<Paths, CliError> {
        Ok(Paths::of(&std::path::absolute(&self.state)?))
    }

    /// The store as the daemon is told it: a directory's path does not depend on where the command
    /// is called.
    pub(super) fn store_ref(&self) -> Result<StoreRef, CliError> {
        let url = match &self.store {
            Some(path) if !path.contains(':') => {
                let path = std::path::absolute(Path::new(path))?;
                let text = path.into_os_string().into_string();
                Some(text.map_err(|_| CliError::Usage("the store's path is not UTF-8".into()))?)
            }
            other => other.clone(),
        };
        Ok(StoreRef { url, plain_http: self.plain_http })
    }
}

/// A client of the daemon, which is started if there is none.
pub(super) fn ensure(
    global: &Global,
    paths: &Paths,
    cache_size: Option<Budget>,
) -> Result<(Client, StatusAnswer), CliError> {
    let mut words: Vec<OsString> = common_words(global, "daemon")?;
    words.push("--in-background".into());
    words.extend(["--idle-exit".into(), duration::format(global.idle_exit_of_started).into()]);
    if let Some(size) = cache_size {
        words.extend(["--cache-size".into(), size.to_string().into()]);
    }
    Ok(daemon::ensure(paths, &words)?)
}

/// Asks a daemon; one that is about to end is left to do so, and the next is asked.
pub(super) fn with_daemon<T>(
    global: &Global,
    cache_size: Option<Budget>,
    mut ask: impl FnMut(&Client, &StatusAnswer) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let paths = global.paths()?;
    // Tried again, a request has the key that it had before: nothing is done twice.
    let keys = Keys::new()?;
    for _ in 1..TRIES {
        let (client, status) = ensure(global, &paths, cache_size)?;
        match ask(&client.with_keys(&keys), &status) {
            Err(CliError::Daemon(error)) if is_passing(&error) => {}
            other => return other,
        }
        std::thread::sleep(PAUSE);
    }
    let (client, status) = ensure(global, &paths, cache_size)?;
    ask(&client.with_keys(&keys), &status)
}

/// Whether it was only the wrong moment: mostly a daemon that was just ending.
/// If it had done what it was asked for, the next one knows the key.
fn is_passing(error: &DaemonError) -> bool {
    match error {
        DaemonError::NotRunning(_) | DaemonError::Conversation(_) => true,
        DaemonError::Refused(answer) => answer.kind == ErrorKind::Ending,
        _ => false,
    }
}

/// Says where the daemon that runs is not as this command would have started it.
pub(super) fn warn_of_differences(
    global: &Global,
    status: &StatusAnswer,
    cache_size: Option<Budget>,
) {
    let remote = global.store.as_ref().is_some_and(|url| url.contains("://"));
    if remote && !daemon::has_environment_of(status) {
        tracing::warn!(
            "the daemon was started with other variables for stores (AWS_…, GOOGLE_…, AZURE_…) than \
             this command has, and uses its own; `inlay daemon --takeover` starts one with yours"
        );
    }
    if let Some(wanted) = cache_size
        && status.cache_size.as_deref() != Some(wanted.to_string().as_str())
    {
        let has = status.cache_size.as_deref().unwrap_or("unknown");
        tracing::warn!(
            "the daemon that runs keeps its cache size ({has}); `inlay daemon --takeover \
             --cache-size {wanted}` changes it"
        );
    }
}
