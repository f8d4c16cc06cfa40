//! One look at the daemon: a handful of requests, and the sandboxes' cgroups.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hyper::Method;
use serde::de::DeserializeOwned;

use super::numbers::Numbers;
use crate::daemon::{
    Client, DaemonError, MOUNTS, MountShown, PREFETCH, PrefetchAnswer, SANDBOXES, STATUS,
    SandboxShown, SandboxState, StatusAnswer,
};
use crate::sandbox::{Layout, SandboxId, Usage, usage};

/// How many sandboxes' cgroups are looked at.
const USAGES_MAX: usize = 512;
/// `USER_HZ`: what proc(5) counts in, the same on every architecture that this runs on.
const TICKS_PER_SECOND: u64 = 100;

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// When, on this process's clock.
    pub(super) taken: Instant,
    /// When, by the host's clock.
    pub(super) at: SystemTime,
    pub(super) status: StatusAnswer,
    /// How long the daemon has run; nothing if it is not of this host, or has just ended.
    pub(super) uptime: Option<Duration>,
    pub(super) numbers: Numbers,
    pub(super) loading: PrefetchAnswer,
    pub(super) mounts: Vec<MountShown>,
    pub(super) sandboxes: Vec<SandboxShown>,
    pub(super) usage: HashMap<SandboxId, Usage>,
}

impl Sample {
    /// Looks. Five requests, one after the other.
    pub(super) async fn take(client: &Client, state: PathBuf) -> Result<Self, DaemonError> {
        let status: StatusAnswer = get(client, STATUS).await?;
        let numbers = Numbers::parse(&client.metrics().await?);
        let loading = get(client, PREFETCH).await?;
        let mounts = get(client, MOUNTS).await?;
        let sandboxes: Vec<SandboxShown> = get(client, SANDBOXES).await?;
        let usage = used(&state, &sandboxes);
        let (taken, at) = (Instant::now(), SystemTime::now());
        let uptime = uptime(status.server.started);
        Ok(Self { taken, at, status, uptime, numbers, loading, mounts, sandboxes, usage })
    }
}

async fn get<A: DeserializeOwned>(client: &Client, path: &str) -> Result<A, DaemonError> {
    client.ask(Method::GET, path, &(), Duration::ZERO).await
}

fn used(state: &Path, sandboxes: &[SandboxShown]) -> HashMap<SandboxId, Usage> {
    let running = sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Running);
    let usages = running.take(USAGES_MAX).filter_map(|sandbox| {
        let usage = usage(&Layout::of(state, &sandbox.id)).ok()?;
        Some((sandbox.id.clone(), usage))
    });
    usages.collect()
}

/// The time since a process started, which proc(5) has in clock ticks since the host booted.
fn uptime(started: u64) -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    let began = Duration::from_millis(started.checked_mul(1000)? / TICKS_PER_SECOND);
    Duration::try_from_secs_f64(up).ok()?.checked_sub(began)
}
