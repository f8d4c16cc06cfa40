//! Freezes a sandbox for a client, and thaws it even if the client dies.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::super::error::SandboxError;
use super::super::protocol::{Failure, Reply};
use super::conn::Conn;
use super::shared::{Shared, failure};

/// The maximum duration of a freeze.
const LIMIT_MAX: Duration = Duration::from_mins(1);
/// The maximum number of concurrent freezes of a sandbox.
const FREEZES_MAX: usize = 64;
/// The number of checks without a pause for whether the sandbox is frozen.
const LOOKS: u32 = 20;

/// A freeze request in effect. Dropping the last one thaws the sandbox, unless another program had
/// frozen it before the first.
struct Freezing<'a>(&'a Shared);

impl Drop for Freezing<'_> {
    fn drop(&mut self) {
        let left = self.0.freezes.get().saturating_sub(1);
        self.0.freezes.set(left);
        if left == 0
            && !self.0.frozen_before.get()
            && let Err(error) = self.0.freezer.thaw()
        {
            tracing::error!(%error, "can't thaw the sandbox");
        }
    }
}

/// Serves a freeze request.
pub(super) async fn serve(shared: &Rc<Shared>, conn: &mut Conn, within: Duration, limit: Duration) {
    let began = Instant::now();
    let until = began + limit.min(LIMIT_MAX);
    let freezing = match freeze(shared, within.min(limit).min(LIMIT_MAX)).await {
        Ok(freezing) => freezing,
        Err(failure) => {
            conn.reply(&Reply::Failed(failure)).await.ok();
            return;
        }
    };
    let micros = micros(began);
    let held = if conn.reply(&Reply::Frozen { micros }).await.is_ok() {
        tokio::select! {
            // Another program may have thawed it.
            () = conn.anything() => shared.freezer.is_frozen().unwrap_or(false),
            () = sleep_until(until) => false,
            // Frozen processes can't be killed.
            () = shared.killed.notified() => false,
        }
    } else {
        true
    };
    drop(freezing);
    let frozen_micros = self::micros(began);
    conn.reply(&Reply::Thawed { frozen_micros, held }).await.ok();
}

async fn freeze(shared: &Shared, within: Duration) -> Result<Freezing<'_>, Failure> {
    let until = Instant::now() + within;
    if shared.has_ended() {
        return Err(Failure::NotRunning);
    }
    if shared.freezes.get() >= FREEZES_MAX {
        return Err(Failure::Other { message: "too many hold the sandbox frozen".to_owned() });
    }
    if shared.freezes.get() == 0 {
        shared.frozen_before.set(shared.freezer.is_told_to().unwrap_or(false));
    }
    shared.freezes.set(shared.freezes.get() + 1);
    let freezing = Freezing(shared);
    let mut looks = 0;
    loop {
        let frozen = shared.freezer.freeze().and_then(|()| shared.freezer.is_frozen());
        match frozen {
            Ok(true) => return Ok(freezing),
            Ok(false) if Instant::now() < until => {}
            Ok(false) => {
                drop(freezing);
                let limit_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                return Err(Failure::NotFrozen { limit_ms, stuck: shared.freezer.stuck() });
            }
            Err(_) if shared.has_ended() => return Err(Failure::NotRunning),
            Err(error) => {
                let what = SandboxError::io("freeze", shared.layout.root());
                return Err(failure(&what(error)));
            }
        }
        looks += 1;
        if looks < LOOKS {
            tokio::task::yield_now().await;
        } else {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
