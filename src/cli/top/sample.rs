//! Takes samples of the daemon: five requests, and the cgroups of the sandboxes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hyper::Method;
use inlay_sandbox::{Layout, SandboxId, Usage, usage};
use serde::de::DeserializeOwned;

use super::numbers::Sampled;
use crate::daemon::{
    Client, ClientError, MOUNTS, MountInfo, PREFETCH, PrefetchAnswer, SANDBOXES, STATUS,
    SandboxInfo, SandboxState, StatusAnswer,
};

/// Maximum number of sandboxes with cgroups read per sample.
const USAGES_MAX: usize = 512;
/// `USER_HZ`, the clock tick of proc(5), 100 on all supported architectures.
const TICKS_PER_SECOND: u64 = 100;

/// State of the daemon at one time.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Monotonic time of the sample.
    pub(super) taken: Instant,
    /// Wall-clock time of the sample.
    pub(super) at: SystemTime,
    pub(super) status: StatusAnswer,
    /// Uptime of the daemon; `None` if it cannot be computed, e.g. for a daemon of another host.
    pub(super) uptime: Option<Duration>,
    pub(super) numbers: Sampled,
    pub(super) loading: PrefetchAnswer,
    pub(super) mounts: Vec<MountInfo>,
    pub(super) sandboxes: Vec<SandboxInfo>,
    pub(super) usage: HashMap<SandboxId, Usage>,
}

impl Sample {
    /// Takes a sample with five sequential requests, and reads the cgroups of running sandboxes.
    pub(super) async fn take(client: &Client, state: PathBuf) -> Result<Self, ClientError> {
        let status: StatusAnswer = get(client, STATUS).await?;
        let numbers = Sampled::parse(&client.metrics().await?);
        let loading = get(client, PREFETCH).await?;
        let mounts = get(client, MOUNTS).await?;
        let sandboxes: Vec<SandboxInfo> = get(client, SANDBOXES).await?;
        let usage = used(&state, &sandboxes);
        let (taken, at) = (Instant::now(), SystemTime::now());
        let uptime = uptime(status.server.started);
        Ok(Self { taken, at, status, uptime, numbers, loading, mounts, sandboxes, usage })
    }
}

async fn get<A: DeserializeOwned>(client: &Client, path: &str) -> Result<A, ClientError> {
    client.ask(Method::GET, path, &(), Duration::ZERO).await
}

fn used(state: &Path, sandboxes: &[SandboxInfo]) -> HashMap<SandboxId, Usage> {
    let running = sandboxes.iter().filter(|sandbox| sandbox.state == SandboxState::Running);
    let usages = running.take(USAGES_MAX).filter_map(|sandbox| {
        let usage = usage(&Layout::of(state, &sandbox.id)).ok()?;
        Some((sandbox.id.clone(), usage))
    });
    usages.collect()
}

/// Returns the time since a process started; `started` is in clock ticks since boot, as in proc(5).
fn uptime(started: u64) -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    let began = Duration::from_millis(started.checked_mul(1000)? / TICKS_PER_SECOND);
    Duration::try_from_secs_f64(up).ok()?.checked_sub(began)
}
