//! Builds a seccomp profile equivalent to docker's default.
//!
//! Unlisted syscalls fail with EPERM, and those newer than the list with ENOSYS, so that programs
//! use their fallback. Refused are keyrings, io_uring, userfaultfd, kexec, sockets to the kernel's
//! crypto and to virtual machines (`AF_ALG`, `AF_VSOCK`), and everything that requires a capability
//! the sandbox lacks. `clone3` fails with ENOSYS, because a filter can't inspect its flags; C
//! libraries then fall back to `clone`, which has its flags checked.

mod calls;

use serde_json::{Value, json};

use calls::{ALWAYS, OF_ARCHITECTURE, REFUSED, WITH_CAPABILITY};

/// The capability that lifts the conditions on `clone`.
const ADMIN: &str = "CAP_SYS_ADMIN";

/// The `clone` flags that create namespaces: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER,
/// NEWPID and NEWNET.
const NAMESPACES: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// The address families refused for `socket`: `AF_ALG`, the kernel's crypto, and `AF_VSOCK`, which
/// no network namespace confines.
const FAMILIES_REFUSED: [u64; 2] = [38, 40];
/// The highest allowed address family, `AF_MCTP`.
const FAMILY_MAX: u64 = 45;
/// The bits of the register that the kernel uses as the family, an `int`. A comparison of the whole
/// register would miss a refused family with higher bits set.
const FAMILY_BITS: u64 = 0xffff_ffff;

/// The allowed arguments of `personality`: Linux, 32-bit Linux, both with the 2.6 uname, and the
/// query of the current value.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// What returns ENOSYS for syscalls newer than the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newer {
    /// The runtime, as in runc.
    ByRuntime,
    /// The profile, for crun, as in podman. A disallowed `personality` fails with ENOSYS, too.
    ByProfile,
}

/// Builds the profile of a sandbox with these capabilities.
pub(super) fn profile(capabilities: &[String], newer: Newer) -> Value {
    let has = |wanted: &str| capabilities.iter().any(|name| name == wanted);
    let mut allowed: Vec<&str> =
        ALWAYS.iter().chain(&[OF_ARCHITECTURE]).flat_map(|list| list.split_whitespace()).collect();
    for (_, list) in WITH_CAPABILITY.into_iter().filter(|(capability, _)| has(capability)) {
        allowed.extend(list.split_whitespace());
    }
    allowed.sort_unstable();
    allowed.dedup();
    let mut rules = vec![json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" })];
    // Several conditions on one argument are alternatives only as separate rules.
    for family in (0..=FAMILY_MAX).filter(|family| !FAMILIES_REFUSED.contains(family)) {
        let is = argument("SCMP_CMP_MASKED_EQ", FAMILY_BITS, family);
        rules.push(rule("socket", &ALLOW, &is));
    }
    for value in PERSONALITIES {
        rules.push(rule("personality", &ALLOW, &argument("SCMP_CMP_EQ", value, 0)));
    }
    if !has(ADMIN) {
        let all = NAMESPACES.into_iter().fold(0, |all, flag| all | flag);
        rules.push(rule("clone", &ALLOW, &argument("SCMP_CMP_MASKED_EQ", all, 0)));
    }
    let default = match newer {
        Newer::ByRuntime => {
            if !has(ADMIN) {
                rules.push(json!({
                    "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS,
                }));
            }
            libc::EPERM
        }
        // clone3 gets the default, ENOSYS: libseccomp rejects a rule with the default action.
        Newer::ByProfile => {
            rules.extend(refusals(&allowed));
            libc::ENOSYS
        }
    };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": default,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

/// Returns the rules that fail with EPERM where the default is ENOSYS.
fn refusals(allowed: &[&str]) -> Vec<Value> {
    let of_capabilities = WITH_CAPABILITY.iter().flat_map(|(_, list)| list.split_whitespace());
    let mut names: Vec<&str> = REFUSED
        .split_whitespace()
        .chain(of_capabilities)
        .filter(|name| !allowed.contains(name) && !["clone", "clone3"].contains(name))
        .collect();
    names.sort_unstable();
    names.dedup();
    let refuse = ("SCMP_ACT_ERRNO", Some(libc::EPERM));
    let mut rules =
        vec![json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM })];
    for family in FAMILIES_REFUSED {
        let is = argument("SCMP_CMP_MASKED_EQ", FAMILY_BITS, family);
        rules.push(rule("socket", &refuse, &is));
    }
    if !allowed.contains(&"clone") {
        for flag in NAMESPACES {
            rules.push(rule("clone", &refuse, &argument("SCMP_CMP_MASKED_EQ", flag, flag)));
        }
    }
    rules
}

/// The action of a rule, and the errno it returns.
type Action = (&'static str, Option<i32>);

const ALLOW: Action = ("SCMP_ACT_ALLOW", None);

/// Builds a rule for the syscall `name` with a condition on its first argument.
fn rule(name: &str, (action, errno): &Action, argument: &Value) -> Value {
    let mut rule = json!({ "names": [name], "action": action, "args": [argument] });
    if let (Some(errno), Some(map)) = (errno, rule.as_object_mut()) {
        map.insert("errnoRet".to_owned(), json!(errno));
    }
    rule
}

/// Builds a condition on the first argument; `second` is compared with the masked value.
fn argument(operator: &str, value: u64, second: u64) -> Value {
    json!({ "index": 0, "value": value, "valueTwo": second, "op": operator })
}

fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn allowed(capabilities: &[&str]) -> BTreeSet<String> {
        let capabilities: Vec<String> =
            capabilities.iter().map(|name| (*name).to_owned()).collect();
        let profile = profile(&capabilities, Newer::ByRuntime);
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let rules = profile["syscalls"].as_array().unwrap();
        let plain = rules
            .iter()
            .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule.get("args").is_none());
        let names = plain.flat_map(|rule| rule["names"].as_array().unwrap());
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_call_is_listed_once() {
        let all: Vec<&str> = ALWAYS.iter().flat_map(|list| list.split_whitespace()).collect();
        let once: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(once.len(), all.len());
        for (_, list) in WITH_CAPABILITY {
            assert!(list.split_whitespace().all(|name| !once.contains(name)), "{list}");
        }
    }

    #[test]
    fn dangerous_syscalls_need_a_capability_or_are_refused() {
        let plain = allowed(&[]);
        for name in [
            "keyctl",
            "socketcall",
            "add_key",
            "request_key",
            "io_uring_setup",
            "io_uring_enter",
            "userfaultfd",
            "kexec_load",
            "swapon",
            "pivot_root",
            "move_pages",
            "uselib",
            "vm86",
            "socket",
            "clone",
            "personality",
            "clone3",
            "nfsservctl",
        ] {
            assert!(!plain.contains(name), "{name}");
        }
        for (capability, list) in WITH_CAPABILITY {
            let more = allowed(&[capability]);
            for name in list.split_whitespace() {
                assert!(!plain.contains(name) && more.contains(name), "{name} by {capability}");
            }
        }
    }

    #[test]
    fn namespaces_are_behind_one_capability() {
        let conditions = |capabilities: &[String], name: &str| {
            let profile = profile(capabilities, Newer::ByRuntime);
            let rules = profile["syscalls"].as_array().unwrap().clone();
            rules.into_iter().filter(|rule| rule["names"] == json!([name])).count()
        };
        assert_eq!((conditions(&[], "clone"), conditions(&[], "clone3")), (1, 1));
        let admin = [ADMIN.to_owned()];
        assert_eq!((conditions(&admin, "clone"), conditions(&admin, "clone3")), (0, 0));
    }

    #[test]
    fn profiles_that_default_to_enosys_list_refused_syscalls() {
        for admin in [&[][..], &[ADMIN.to_owned()]] {
            let (plain, newer) =
                (profile(admin, Newer::ByRuntime), profile(admin, Newer::ByProfile));
            assert_eq!(
                (&plain["defaultErrnoRet"], &newer["defaultErrnoRet"]),
                (&json!(1), &json!(38))
            );
            let rules = newer["syscalls"].as_array().unwrap();
            assert_eq!(rules[0], plain["syscalls"][0], "what is allowed is the same");
            // No syscall is both allowed and refused, or refused with the default errno.
            let allowed = rules[0]["names"].as_array().unwrap();
            for rule in rules.iter().filter(|rule| rule["action"] == "SCMP_ACT_ERRNO") {
                assert_eq!(rule["errnoRet"], libc::EPERM);
                let names = rule["names"].as_array().unwrap();
                assert!(names.iter().all(|name| !allowed.contains(name)), "{rule}");
            }
        }
    }
}
