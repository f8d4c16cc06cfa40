//! Freezing a sandbox for a client, and thawing it whatever becomes of the client.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::super::protocol::{Failure, Reply};
use super::conn::Conn;
use super::shared::{Shared, failure};

/// The longest freezing that anybody gets.
const LIMIT_MAX: Duration = Duration::from_mins(1);
/// How many clients may hold a sandbox frozen at once.
const FREEZES_MAX: usize = 64;
/// How often it is looked, without a pause, whether a sandbox stands still.
const LOOKS: u32 = 20;

/// A freezing. The last one that is dropped thaws the sandbox.
struct Freezing<'a>(&'a Shared);

impl Drop for Freezing<'_> {
    fn drop(&mut self) {
        let left = self.0.freezes.get().saturating_sub(1);
        self.0.freezes.set(left);
        if left == 0
            && let Err(error) = self.0.freezer.thaw()
        {
            tracing::error!(%error, "the sandbox can't be thawed");
        }
    }
}

/// Serves a client that wants the sandbox frozen.
pub(super) async fn serve(shared: &Rc<Shared>, conn: &mut Conn, limit: Duration) {
    let began = Instant::now();
    let until = began + limit.min(LIMIT_MAX);
    let freezing = match freeze(shared, until, limit).await {
        Ok(freezing) => freezing,
        Err(failure) => {
            conn.reply(&Reply::Failed(failure)).await.ok();
            return;
        }
    };
    let micros = micros(began);
    let held = if conn.reply(&Reply::Frozen { micros }).await.is_ok() {
        tokio::select! {
            () = conn.anything() => true,
            () = sleep_until(until) => false,
            // What is frozen can't be killed.
            () = shared.killed.notified() => false,
        }
    } else {
        true
    };
    drop(freezing);
    let frozen_micros = self::micros(began);
    conn.reply(&Reply::Thawed { frozen_micros, held }).await.ok();
}

async fn freeze(shared: &Shared, until: Instant, limit: Duration) -> Result<Freezing<'_>, Failure> {
    if shared.has_ended() {
        return Err(Failure::NotRunning);
    }
    if shared.freezes.get() >= FREEZES_MAX {
        return Err(Failure::Other { message: "too many hold the sandbox frozen".to_owned() });
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
                let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                return Err(Failure::NotFrozen { limit_ms });
            }
            Err(_) if shared.has_ended() => return Err(Failure::NotRunning),
            Err(error) => {
                let what = super::super::error::SandboxError::io("freeze", shared.layout.root());
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
