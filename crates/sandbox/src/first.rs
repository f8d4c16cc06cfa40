//! The init program of a sandbox with nothing else to run: it waits.
//!
//! As pid 1 it reaps orphans, and it exits with code 0 on SIGTERM and SIGINT. It blocks all
//! signals: for pid 1 the kernel drops signals that are neither blocked nor handled, while blocked
//! ones stay pending. It depends on no file of the image.

/// Where it is bind-mounted: in the sandbox's /dev, a tmpfs.
pub(super) const SHOWN_AT: &str = "/dev/inlay-wait";

/// The command on architectures without the built-in program: available in every image with a
/// shell.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const ARGS: &[&str] = &["sleep", "infinity"];
/// The command that runs.
#[cfg(target_arch = "x86_64")]
pub(super) const ARGS: &[&str] = &[SHOWN_AT];

/// Returns the program; `None` if there is none for this architecture.
pub(super) fn program() -> Option<Vec<u8>> {
    cfg!(target_arch = "x86_64").then(elf)
}

/// The virtual address at which it is loaded.
const BASE: u64 = 0x40_0000;
const FILE_HEADER_LEN: u16 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
const CODE_AT: u16 = FILE_HEADER_LEN + PROGRAM_HEADER_LEN;

#[rustfmt::skip]
const CODE: [u8; 91] = [
    0x6a, 0xff,                         //       push -1              the set of all signals
    0x31, 0xff,                         //       xor edi, edi         SIG_BLOCK
    0x48, 0x89, 0xe6,                   //       mov rsi, rsp
    0x31, 0xd2,                         //       xor edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, //       mov r10d, 8          the set's length
    0xb8, 0x0e, 0x00, 0x00, 0x00,       //       mov eax, 14          rt_sigprocmask
    0x0f, 0x05,                         //       syscall
    0xbf, 0xff, 0xff, 0xff, 0xff,       // reap: mov edi, -1          any child
    0x48, 0x63, 0xff,                   //       movsxd rdi, edi
    0x31, 0xf6,                         //       xor esi, esi
    0xba, 0x01, 0x00, 0x00, 0x00,       //       mov edx, 1           WNOHANG
    0x45, 0x31, 0xd2,                   //       xor r10d, r10d
    0xb8, 0x3d, 0x00, 0x00, 0x00,       //       mov eax, 61          wait4
    0x0f, 0x05,                         //       syscall
    0x48, 0x85, 0xc0,                   //       test rax, rax
    0x7f, 0xe2,                         //       jg reap
    0x48, 0x89, 0xe7,                   //       mov rdi, rsp
    0x31, 0xf6,                         //       xor esi, esi
    0x31, 0xd2,                         //       xor edx, edx
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, //       mov r10d, 8
    0xb8, 0x80, 0x00, 0x00, 0x00,       //       mov eax, 128         rt_sigtimedwait, for ever
    0x0f, 0x05,                         //       syscall
    0x83, 0xf8, 0x0f,                   //       cmp eax, 15          SIGTERM
    0x74, 0x05,                         //       je end
    0x83, 0xf8, 0x02,                   //       cmp eax, 2           SIGINT
    0x75, 0xc4,                         //       jne reap
    0x31, 0xff,                         // end:  xor edi, edi
    0xb8, 0xe7, 0x00, 0x00, 0x00,       //       mov eax, 231         exit_group
    0x0f, 0x05,                         //       syscall
];

/// Builds a minimal ELF file around the code: one segment, readable and executable (System V ABI,
/// "Object Files").
fn elf() -> Vec<u8> {
    let len = u64::from(CODE_AT) + CODE.len() as u64;
    let mut file = Vec::new();
    // 64 bits, little-endian, version 1, System V.
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // An executable for x86-64, version 1.
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    // Entry point, program headers, no section headers.
    for word in [BASE + u64::from(CODE_AT), u64::from(FILE_HEADER_LEN), 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [FILE_HEADER_LEN, PROGRAM_HEADER_LEN, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes());
    }
    // Offset, virtual and physical address, length in the file and in memory, alignment.
    for word in [0, BASE, BASE, len, len, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use rustix::process::{Pid, Signal, kill_process};

    /// Runs the program as pid 1 of a namespace and joins a shell to it that leaves an orphan
    /// behind.
    #[test]
    fn as_process_1_it_reaps_orphans_and_ends_on_sigterm() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("wait");
        fs::write(&program, elf()).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(&program)
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let first = loop {
            let list = fs::read_to_string(&children).unwrap();
            if let Some(pid) = list.split_whitespace().next() {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if name.trim() == "wait" {
                    break pid.to_owned();
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        // The shell's child is orphaned when the shell exits; the pipe reaches its end when both
        // have.
        let mut orphan = Command::new("nsenter")
            .args(["--pid", "--mount", "--target", &first, "--", "sh", "-c"])
            .arg("(sleep 0.1; echo gone) & echo left")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: Vec<_> =
            BufReader::new(orphan.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
        orphan.wait().unwrap();
        assert_eq!(lines, ["left", "gone"]);
        // No zombie remains: the program soon has no children.
        let children = format!("/proc/{first}/task/{first}/children");
        while !fs::read_to_string(&children).unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let first = Pid::from_raw(first.parse().unwrap()).unwrap();
        kill_process(first, Signal::USR1).unwrap();
        kill_process(first, Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
