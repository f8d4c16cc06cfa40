//! Builds the runtime's configuration per the OCI runtime specification.
//!
//! Masked and read-only paths, mounts, devices and sysctls are docker's defaults.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::layout::Layout;
use super::options::{Limits, Network, RootAccess, SandboxOptions, Terminal};
use super::runtime::is_crun;
use super::seccomp::{self, Newer};
use super::security::{Confinement, Privileges, Seccomp};
use super::users::Identity;

/// The specification version in use: supported by runc 1.0 and crun 1.0.
const VERSION: &str = "1.0.2";
/// The period of the CPU quota, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// The limit of open files per process: soft and hard.
const OPEN_FILES: (u64, u64) = (65_536, 524_288);
/// The default size of /dev/shm, in bytes: docker's.
const SHM_DEFAULT: u64 = 64 << 20;
/// A sysfs directory per CPU; their temperatures are a side channel.
const PROCESSORS: &str = "/sys/devices/system/cpu";
/// The annotation with the first process's stop signal, under the name used by docker and others.
pub(super) const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// The annotation with the runtime that was chosen when the sandbox was created.
pub(super) const RUNTIME: &str = "inlay.runtime";

/// The paths to mask. Runtimes skip the ones that do not exist.
const MASKED: [&str; 12] = [
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
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sysctls of a sandbox's own network namespace: every user in it may bind any port, and ping.
const NETWORK_PARAMETERS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Properties of the host on which the configuration depends.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostFacts {
    /// Whether the unified cgroup hierarchy is the only one.
    pub(super) unified_cgroups: bool,
    /// Whether memory and swap can be limited together.
    pub(super) bounds_swap: bool,
    /// This process's hard limit of open files, which it can't exceed for its children.
    pub(super) open_files: u64,
    /// This process's OOM score adjustment, which its children inherit.
    pub(super) oom_score_adj: i32,
    /// Whether network namespaces have the sysctls that docker sets in them.
    pub(super) network_parameters: bool,
}

/// A host file to bind-mount into a sandbox.
#[derive(Debug, Clone)]
pub(super) struct HostFile {
    pub(super) from: PathBuf,
    pub(super) at: &'static str,
    pub(super) access: Access,
}

/// Whether programs can write to a bind-mounted file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// The first process.
#[derive(Debug, Clone)]
pub(super) struct FirstRun<'a> {
    pub(super) args: &'a [String],
    pub(super) env: &'a [String],
    pub(super) workdir: &'a str,
    pub(super) identity: &'a Identity,
    pub(super) stop_signal: i32,
    pub(super) confinement: &'a Confinement,
}

/// Builds the complete configuration.
pub(super) fn spec(
    layout: &Layout,
    options: &SandboxOptions,
    run: &FirstRun<'_>,
    shown: &[HostFile],
    host: HostFacts,
    runtime: &Path,
) -> Value {
    let hostname = hostname(layout, options);
    let mut linux = json!({
        "resources": resources(&options.limits, host),
        "cgroupsPath": layout.cgroup(),
        "namespaces": namespaces(options.network, host),
        // Mount events propagate in neither direction.
        "rootfsPropagation": "rprivate",
        "maskedPaths": masked(),
        "readonlyPaths": READ_ONLY,
    });
    if run.confinement.seccomp == Seccomp::Default {
        let newer = if is_crun(runtime) { Newer::ByProfile } else { Newer::ByRuntime };
        set(&mut linux, "seccomp", seccomp::profile(&run.confinement.capabilities, newer));
    }
    if options.network == Network::None && host.network_parameters {
        set(&mut linux, "sysctl", json!(BTreeMap::from(NETWORK_PARAMETERS)));
    }
    json!({
        "ociVersion": VERSION,
        "process": process(run, options, host),
        "root": {
            "path": text(&layout.rootfs()),
            "readonly": options.root == RootAccess::ReadOnly,
        },
        "hostname": hostname,
        "mounts": mounts(layout, options, shown),
        "annotations": { STOP_SIGNAL: run.stop_signal.to_string(), RUNTIME: text(runtime) },
        "linux": linux,
    })
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

/// Returns the paths to mask: the fixed ones, and a thermal directory per CPU where it exists.
fn masked() -> Vec<String> {
    let processors = fs::read_dir(PROCESSORS).into_iter().flatten().flatten();
    let mut thermal: Vec<String> = processors
        .filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.exists())
        .map(|path| text(&path))
        .collect();
    thermal.sort_unstable();
    MASKED.iter().map(|path| (*path).to_owned()).chain(thermal).collect()
}

/// Returns the host name of a sandbox.
pub(super) fn hostname(layout: &Layout, options: &SandboxOptions) -> String {
    options.hostname.clone().unwrap_or_else(|| layout.id().to_string())
}

fn process(run: &FirstRun<'_>, options: &SandboxOptions, host: HostFacts) -> Value {
    let (soft, hard) = OPEN_FILES;
    let (soft, hard) = (soft.min(host.open_files), hard.min(host.open_files));
    let mut process = json!({
        "terminal": options.terminal == Terminal::Pty,
        "user": user(run.identity),
        "args": run.args,
        "env": run.env,
        "cwd": run.workdir,
        "capabilities": capabilities(run.identity, &run.confinement.capabilities),
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }],
        "noNewPrivileges": options.security.privileges == Privileges::Fixed,
    });
    if let Some(profile) = &run.confinement.apparmor {
        set(&mut process, "apparmorProfile", json!(profile));
    }
    // A daemon protected from the OOM killer does not pass that on. Lowering a score, in contrast,
    // takes a capability that the runtime may lack, so a positive one is inherited.
    if host.oom_score_adj < 0 {
        set(&mut process, "oomScoreAdj", json!(0));
    }
    process
}

/// Builds the OCI user object.
pub(super) fn user(identity: &Identity) -> Value {
    json!({ "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups })
}

/// Builds the OCI capability sets: root holds the `given` ones, other users none until they become
/// root.
pub(super) fn capabilities(identity: &Identity, given: &[String]) -> Value {
    let own = if identity.uid == 0 { given } else { &[] };
    json!({ "bounding": given, "effective": own, "permitted": own })
}

fn mounts(layout: &Layout, options: &SandboxOptions, shown: &[HostFile]) -> Vec<Value> {
    let special = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let bind = |at: &str, from: &Path, options: &[&str]| {
        let all: Vec<&str> = ["rbind", "rprivate"].iter().chain(options).copied().collect();
        json!({ "destination": at, "type": "bind", "source": text(from), "options": all })
    };
    let shm = format!("size={}", options.limits.shm.unwrap_or(SHM_DEFAULT));
    let mut mounts = vec![
        special("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        special("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        special("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        special("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        special("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    for file in shown {
        let access = match file.access {
            Access::Read => "ro",
            Access::Write => "rw",
        };
        mounts.push(bind(file.at, &file.from, &[access, "nosuid", "nodev"]));
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
    // With v1, the runtime shows a sandbox only its own cgroups even without a namespace.
    if host.unified_cgroups {
        kinds.push("cgroup");
    }
    kinds.into_iter().map(|kind| json!({ "type": kind })).collect()
}

fn resources(limits: &Limits, host: HostFacts) -> Value {
    // The runtime adds the devices that every container has.
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(bytes) = limits.memory {
        let mut memory = json!({ "limit": bytes });
        if host.bounds_swap {
            set(&mut memory, "swap", json!(bytes));
        }
        set(&mut resources, "memory", memory);
    }
    if let Some(quota) = limits.cpus.and_then(cpu_quota) {
        set(&mut resources, "cpu", json!({ "quota": quota, "period": CPU_PERIOD }));
    }
    if let Some(count) = limits.pids.filter(|count| *count > 0) {
        set(&mut resources, "pids", json!({ "limit": count }));
    }
    resources
}

/// Converts CPUs to microseconds of CPU time per period.
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
