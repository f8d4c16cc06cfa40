//! The runtime's configuration of a sandbox, as the OCI runtime specification has it.
//!
//! Capabilities, masked and read-only paths, mounts and devices are docker's defaults.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::layout::Layout;
use super::options::{Limits, Network, RootAccess, SandboxOptions, Terminal};
use super::seccomp;
use super::users::Identity;

/// The version of the specification whose words are used: what runc 1.0 and crun 1.0 know.
const VERSION: &str = "1.0.2";
/// How long a share of processor time is counted, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// Files that a process may have open: what it has, and what it may ask for.
const OPEN_FILES: (u64, u64) = (65_536, 524_288);
/// The signal that stops the first process, where `docker` and others look for it, too.
pub(super) const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// The runtime that was chosen when the sandbox was made.
pub(super) const RUNTIME: &str = "inlay.runtime";

const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the host is like, as far as the configuration depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostFacts {
    /// Whether there is the unified hierarchy and nothing else.
    pub(super) unified_cgroups: bool,
    /// Whether memory and swap together can be bounded.
    pub(super) bounds_swap: bool,
    /// How many files this process may open at most: more it can't give.
    pub(super) open_files: u64,
}

/// A file of the host that is shown in a sandbox.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) from: PathBuf,
    pub(super) at: &'static str,
}

/// The first process.
#[derive(Debug, Clone)]
pub(super) struct FirstRun<'a> {
    pub(super) args: &'a [String],
    pub(super) env: &'a [String],
    pub(super) workdir: &'a str,
    pub(super) identity: &'a Identity,
    pub(super) stop_signal: i32,
}

/// The whole configuration.
pub(super) fn spec(
    layout: &Layout,
    options: &SandboxOptions,
    run: &FirstRun<'_>,
    shown: &[Shown],
    host: HostFacts,
    runtime: &Path,
) -> Value {
    let hostname = hostname(layout, options);
    json!({
        "ociVersion": VERSION,
        "process": process(run, options.terminal, host),
        "root": {
            "path": text(&layout.rootfs()),
            "readonly": options.root == RootAccess::ReadOnly,
        },
        "hostname": hostname,
        "mounts": mounts(layout, options, shown),
        "annotations": { STOP_SIGNAL: run.stop_signal.to_string(), RUNTIME: text(runtime) },
        "linux": {
            "resources": resources(&options.limits, host),
            "cgroupsPath": layout.cgroup(),
            "namespaces": namespaces(options.network, host),
            // What the host mounts later is not for the sandbox, and the other way round.
            "rootfsPropagation": "rprivate",
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp::profile(),
        },
    })
}

/// The host name of a sandbox.
pub(super) fn hostname(layout: &Layout, options: &SandboxOptions) -> String {
    options.hostname.clone().unwrap_or_else(|| layout.id().to_string())
}

fn process(run: &FirstRun<'_>, terminal: Terminal, host: HostFacts) -> Value {
    let (soft, hard) = OPEN_FILES;
    let (soft, hard) = (soft.min(host.open_files), hard.min(host.open_files));
    json!({
        "terminal": terminal == Terminal::Pty,
        "user": user(run.identity),
        "args": run.args,
        "env": run.env,
        "cwd": run.workdir,
        "capabilities": capabilities(run.identity),
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }],
        "noNewPrivileges": false,
    })
}

/// A user as the runtime is told.
pub(super) fn user(identity: &Identity) -> Value {
    json!({ "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups })
}

/// What a process may do: root what docker gives it, others nothing until they become root.
pub(super) fn capabilities(identity: &Identity) -> Value {
    let own: &[&str] = if identity.uid == 0 { &CAPABILITIES } else { &[] };
    json!({ "bounding": CAPABILITIES, "effective": own, "permitted": own })
}

fn mounts(layout: &Layout, options: &SandboxOptions, shown: &[Shown]) -> Vec<Value> {
    let special = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let bind = |at: &str, from: &Path, options: &[&str]| {
        let all: Vec<&str> = ["rbind", "rprivate"].iter().chain(options).copied().collect();
        json!({ "destination": at, "type": "bind", "source": text(from), "options": all })
    };
    let mut mounts = vec![
        special("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        special("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        special("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        special("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        special("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    for file in shown {
        mounts.push(bind(file.at, &file.from, &["ro", "nosuid", "nodev"]));
    }
    if !options.secrets.is_empty() {
        let confined = ["ro", "nosuid", "nodev", "noexec"];
        mounts.push(bind("/run/secrets", &layout.secrets(), &confined));
    }
    mounts
}

fn namespaces(network: Network, host: HostFacts) -> Vec<Value> {
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    if network == Network::None {
        kinds.push("network");
    }
    // With v1, the runtime shows a sandbox its own cgroups without a namespace.
    if host.unified_cgroups {
        kinds.push("cgroup");
    }
    kinds.into_iter().map(|kind| json!({ "type": kind })).collect()
}

fn resources(limits: &Limits, host: HostFacts) -> Value {
    // The runtime itself adds the devices that every container has.
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    let mut set = |key: &str, value: Value| {
        if let Some(map) = resources.as_object_mut() {
            map.insert(key.to_owned(), value);
        }
    };
    if let Some(bytes) = limits.memory {
        let mut memory = json!({ "limit": bytes });
        if let (true, Some(map)) = (host.bounds_swap, memory.as_object_mut()) {
            map.insert("swap".to_owned(), json!(bytes));
        }
        set("memory", memory);
    }
    if let Some(quota) = limits.cpus.and_then(cpu_quota) {
        set("cpu", json!({ "quota": quota, "period": CPU_PERIOD }));
    }
    if let Some(count) = limits.pids {
        set("pids", json!({ "limit": count }));
    }
    resources
}

/// Microseconds of processor time in each period.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "checked to be between 0.01 and some thousands, and rounded"
)]
fn cpu_quota(cpus: f64) -> Option<i64> {
    cpus.is_finite().then(|| (cpus * CPU_PERIOD as f64).round() as i64)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
