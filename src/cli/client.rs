//! Connects commands to the daemon: starts it if needed, retries, and warns of different settings.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use inlay_store::cache::Budget;

use super::Global;
use super::daemon::common_words;
use super::duration;
use super::error::CliError;
use crate::daemon::{
    self, Client, ClientError, ErrorKind, IfMounted, Keys, Paths, STOP, StatusAnswer, StopAnswer,
    StopRequest, StoreRef,
};

/// Attempts of a command whose daemon is exiting, [`PAUSE`] apart.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// How long an idle daemon may take to exit before another is started.
const EXIT_LIMIT: Duration = Duration::from_secs(30);

impl Global {
    /// Returns the paths of the daemon of this state directory.
    pub(super) fn paths(&self) -> Result<Paths, CliError> {
        Ok(Paths::of(&std::path::absolute(&self.state)?))
    }

    /// Returns the store for a request to the daemon. The path of a directory is made absolute, so that
    /// it does not depend on the working directory. Fails if it is not UTF-8.
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

/// Connects to the daemon and starts one in the background if none is running.
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

/// Like [`ensure`]. Replaces a daemon that an earlier command started with other store variables,
/// unless it is in use.
fn ensure_with_variables(
    global: &Global,
    paths: &Paths,
    cache_size: Option<Budget>,
) -> Result<(Client, StatusAnswer), CliError> {
    let (client, status) = ensure(global, paths, cache_size)?;
    // One without idle exit was started on purpose, e.g. as a service.
    let is_replaceable = status.idle_exit_ms.is_some() && status.mounts == 0;
    if !is_replaceable || !has_other_variables(global, &status) {
        return Ok((client, status));
    }
    let stop = StopRequest { if_mounted: IfMounted::RefuseIfUsed };
    let Ok(stopped) = client.post::<StopAnswer>(STOP, &stop, EXIT_LIMIT) else {
        // It is in use: the command warns of the difference.
        return Ok((client, status));
    };
    tracing::info!(
        pid = stopped.server.pid,
        "replacing an idle daemon that was started with other store variables"
    );
    stopped.server.wait(EXIT_LIMIT)?;
    ensure(global, paths, cache_size)
}

/// Sends a request to the daemon, and retries it with the next daemon if this one is exiting.
pub(super) fn with_daemon<T>(
    global: &Global,
    cache_size: Option<Budget>,
    mut ask: impl FnMut(&Client, &StatusAnswer) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let paths = global.paths()?;
    // Retries use the same idempotency keys: no request is executed twice.
    let keys = Keys::new()?;
    for _ in 1..TRIES {
        let (client, status) = ensure_with_variables(global, &paths, cache_size)?;
        match ask(&client.with_keys(&keys), &status) {
            Err(CliError::Client(error)) if is_passing(&error) => {}
            other => return other,
        }
        std::thread::sleep(PAUSE);
    }
    let (client, status) = ensure_with_variables(global, &paths, cache_size)?;
    ask(&client.with_keys(&keys), &status)
}

/// Whether the error is transient, usually because the daemon was exiting. A retry is safe: if the
/// request was executed, the next daemon recognizes its key.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::NotRunning(_) | ClientError::Conversation(_) => true,
        ClientError::Refused(answer) => answer.kind == ErrorKind::Ending,
        _ => false,
    }
}

/// Whether this command uses a remote store, and the daemon has other variables for stores.
fn has_other_variables(global: &Global, status: &StatusAnswer) -> bool {
    let is_remote = global.store.as_ref().is_some_and(|url| url.contains("://"));
    is_remote && !daemon::has_environment_of(status)
}

/// Warns if the running daemon has other store variables or another cache size than this command.
pub(super) fn warn_of_differences(
    global: &Global,
    status: &StatusAnswer,
    cache_size: Option<Budget>,
) {
    if has_other_variables(global, status) {
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
