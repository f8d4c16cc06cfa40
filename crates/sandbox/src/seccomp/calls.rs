//! The syscalls that a sandbox may use, grouped by purpose, and those that require a capability.
//!
//! The selection follows docker's default profile (moby/profiles, seccomp, 2026), so that a program
//! finds the same syscalls as in a docker container. Runtimes skip names unknown to the host's
//! libseccomp.

/// Syscalls that every program may use, with any arguments.
pub(super) const ALWAYS: [&str; 9] =
    [FILES, METADATA, WAITING, PROCESSES, IDENTITY, SIGNALS, TIME, MEMORY, COMMUNICATION];

/// Opening, reading, writing and traversing files.
const FILES: &str = "
    open openat openat2 creat close close_range dup dup2 dup3 fcntl fcntl64 ioctl flock
    read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek
    readahead fadvise64 fadvise64_64 fallocate truncate truncate64 ftruncate ftruncate64
    fsync fdatasync sync syncfs sync_file_range cachestat
    copy_file_range sendfile sendfile64 splice tee vmsplice
    getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir
    link linkat symlink symlinkat readlink readlinkat unlink unlinkat
    rename renameat renameat2 mknod mknodat umask name_to_handle_at
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark
    io_setup io_submit io_getevents io_pgetevents io_pgetevents_time64 io_cancel io_destroy";

/// Metadata of files and mounts.
const METADATA: &str = "
    stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx
    statfs statfs64 fstatfs fstatfs64 statmount listmount
    access faccessat faccessat2 chmod fchmod fchmodat fchmodat2
    chown chown32 lchown lchown32 fchown fchown32 fchownat
    utime utimes futimesat utimensat utimensat_time64
    getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat
    listxattr llistxattr flistxattr listxattrat
    removexattr lremovexattr fremovexattr removexattrat";

/// Waiting for descriptors and futexes.
const WAITING: &str = "
    select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old
    epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 pipe pipe2
    futex futex_time64 futex_wait futex_wake futex_waitv futex_requeue
    get_robust_list set_robust_list membarrier rseq";

/// Creating, running, tracing and scheduling processes.
const PROCESSES: &str = "
    fork vfork execve execveat exit exit_group wait4 waitid waitpid restart_syscall
    getpid getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address
    get_thread_area set_thread_area prctl seccomp pidfd_open pidfd_send_signal process_mrelease
    ptrace process_vm_readv process_vm_writev uretprobe
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
    getpriority setpriority ioprio_get ioprio_set getcpu
    sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr
    sched_getparam sched_setparam sched_getscheduler sched_setscheduler
    sched_get_priority_max sched_get_priority_min
    sched_rr_get_interval sched_rr_get_interval_time64
    getrlimit ugetrlimit setrlimit prlimit64 getrusage times sysinfo uname getrandom";

/// User, group and capability identity.
const IDENTITY: &str = "
    getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32
    getresuid getresuid32 getresgid getresgid32 getgroups getgroups32
    setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32
    setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32
    setgroups setgroups32 capget capset";

/// Signals.
const SIGNALS: &str = "
    kill tkill tgkill pause alarm sigaltstack sigprocmask sigreturn
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn
    rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64";

/// Clocks and timers. Setting a clock requires `CAP_SYS_TIME`, which the kernel checks.
const TIME: &str = "
    time gettimeofday nanosleep adjtimex clock_adjtime clock_adjtime64
    clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getitimer setitimer
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
    timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
    timerfd_settime timerfd_settime64";

/// Memory.
const MEMORY: &str = "
    brk mmap mmap2 munmap mremap remap_file_pages mprotect madvise mincore msync mseal
    mlock mlock2 mlockall munlock munlockall memfd_create memfd_secret map_shadow_stack
    pkey_alloc pkey_free pkey_mprotect";

/// Sockets, and System V and POSIX IPC objects, which are private to the sandbox. `socket` is
/// missing: see [`super::FAMILIES_REFUSED`]. So is `socketcall`, the multiplexer of 32-bit
/// programs: its arguments are in memory, which a filter can't inspect, so it would bypass that
/// check.
const COMMUNICATION: &str = "
    socketpair bind listen accept accept4 connect shutdown
    getsockname getpeername getsockopt setsockopt
    send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64
    ipc msgget msgctl msgsnd msgrcv semget semctl semop semtimedop semtimedop_time64
    shmget shmctl shmat shmdt
    mq_open mq_unlink mq_notify mq_getsetattr mq_timedsend mq_timedsend_time64
    mq_timedreceive mq_timedreceive_time64";

/// Syscalls of one architecture.
pub(super) const OF_ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "arch_prctl modify_ldt"
} else {
    "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"
};

/// Syscalls that only a sandbox with the capability may use.
pub(super) const WITH_CAPABILITY: [(&str, &str); 14] = [
    (
        "CAP_SYS_ADMIN",
        "mount umount umount2 open_tree move_mount mount_setattr fsopen fsconfig fsmount fspick
        unshare setns clone clone3 sethostname setdomainname quotactl quotactl_fd fanotify_init
        bpf perf_event_open syslog lookup_dcookie
        lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
    ),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_MODULE", "init_module finit_module delete_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy set_mempolicy set_mempolicy_home_node mbind"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Syscalls that docker's profile does not name, in addition to those of missing capabilities: they
/// fail with EPERM where everything unlisted fails with ENOSYS.
pub(super) const REFUSED: &str = "
    socketcall add_key request_key keyctl io_uring_setup io_uring_enter io_uring_register userfaultfd
    kexec_load kexec_file_load swapon swapoff pivot_root nfsservctl sysfs _sysctl uselib ustat
    move_pages migrate_pages vm86 vm86old vserver create_module get_kernel_syms query_module
    bdflush nice readdir signal sigaction sigpending sigsuspend sgetmask ssetmask
    oldstat oldlstat oldfstat olduname oldolduname";
