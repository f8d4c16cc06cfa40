//! Which system calls a sandbox may not make.
//!
//! A list of what is refused, after what docker's default profile refuses a container without extra
//! capabilities. Unlike docker's it lets pass what neither names: a call that is newer than the list
//! is not refused. Most of what is listed the kernel refuses a process without `CAP_SYS_ADMIN`
//! anyway; what remains is the reason for the list: user namespaces, keyrings, io_uring, bpf,
//! userfaultfd, perf, which open much of the kernel to a process without privileges.

use serde_json::{Value, json};

/// Refused with EPERM.
const REFUSED: [&str; 56] = [
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy_home_node",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
    "uselib",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
    "_sysctl",
];

/// The flags of clone(2) that make namespaces: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER,
/// NEWPID, NEWNET.
const NAMESPACES: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// The profile.
pub(super) fn profile() -> Value {
    let mut syscalls = vec![
        json!({ "names": REFUSED.as_slice(), "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM }),
        // Its flags are in memory, where a filter can't look. C libraries take clone(2) then.
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }),
    ];
    for flag in NAMESPACES {
        let masked = json!({
            "index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ",
        });
        syscalls.push(json!({
            "names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM, "args": [masked],
        }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures(),
        "syscalls": syscalls,
    })
}

fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    }
}
