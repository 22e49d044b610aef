//! podd's own seccomp profile: what a container may ask of the kernel unless the request says otherwise.
//!
//! It decides as the profile that Docker ships in 2026 (moby/profiles; containerd follows it), call by call, so that
//! a pod meets no surprise when its node changes runtimes. It differs in one point, where that profile can be walked
//! around: `socket` compares its family as 64 bits while the kernel takes the low 32, so families are listed one by
//! one instead of "all above 40". Calls that no x86 has are left out.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};

use crate::compile::CapSet;
use linux_raw_sys::errno::{ENOSYS, EPERM};
use linux_raw_sys::general as sys;

/// Allowed to everyone.
const ALWAYS: &[&str] = &[
    // Files and directories.
    "_llseek access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 \
     dup3 faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown \
     fchown32 fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
     ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown lchown32 link linkat \
     listmount lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat \
     openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink \
     readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs \
     statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask \
     unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev",
    // Extended attributes.
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat \
     llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat",
    // Memory.
    "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap \
     mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect \
     remap_file_pages",
    // Processes.
    "execve execveat exit exit_group fork get_thread_area getpgid getpgrp getpid getppid getrandom getsid \
     gettid landlock_add_rule landlock_create_ruleset landlock_restrict_self pidfd_open prctl \
     process_mrelease seccomp set_thread_area set_tid_address setpgid setsid sysinfo uname uretprobe \
     vfork wait4 waitid waitpid",
    // Users, groups and capabilities.
    "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid \
     getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid \
     setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 \
     setreuid setreuid32 setuid setuid32",
    // Scheduling and limits.
    "getcpu getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max \
     sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
     sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield setpriority setrlimit ugetrlimit",
    // Signals.
    "kill pause pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask \
     rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
     sigaltstack sigprocmask sigreturn tgkill tkill",
    // Synchronisation.
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list rseq \
     set_robust_list",
    // Time.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
     clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer \
     time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
     timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 \
     times",
    // Event notification and asynchronous I/O.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
     epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 \
     inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup \
     io_submit poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4",
    // System V and POSIX IPC.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
     mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
     semtimedop_time64 shmat shmctl shmdt shmget",
    // Sockets.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg \
     recvmmsg_time64 recvmsg sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    // x86 only.
    "arch_prctl modify_ldt",
];

/// Allowed to who has the capability, which they need anyway.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    (
        "SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("SYS_PACCT", "acct"),
    (
        "SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYSLOG", "syslog"),
];

/// Safe since Linux 4.8, where ptrace can no longer change what seccomp has seen (prctl(2), seccomp(2)).
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";
const TRACING_SINCE: KernelVersion = KernelVersion(4, 8);

/// Namespaces that a process without CAP_SYS_ADMIN may not make: as containerd, all but time.
const NAMESPACES: u32 = sys::CLONE_NEWNS
    | sys::CLONE_NEWCGROUP
    | sys::CLONE_NEWUTS
    | sys::CLONE_NEWIPC
    | sys::CLONE_NEWUSER
    | sys::CLONE_NEWPID
    | sys::CLONE_NEWNET;

/// What a process may say of its personality: plain Linux (`PER_LINUX`), 32-bit (`PER_LINUX32`), either with the
/// release number of old (`UNAME26`), and the question what it is (linux/personality.h).
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x20000, 0x20008, 0xffff_ffff];

/// Socket families beside those below 38: all of linux/socket.h but AF_ALG (38), whose kernel code is a frequent way
/// out of containers, and AF_VSOCK (40), which talks to the hypervisor past every network policy.
const FAMILIES_BELOW: u64 = 38;
const FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];

/// Version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(u32, u32);

impl KernelVersion {
    /// From its first two numbers.
    #[must_use]
    pub fn new(major: u32, minor: u32) -> Self {
        Self(major, minor)
    }

    /// Reads the beginning of a release such as `6.1.0-18-amd64`; what cannot be read counts as 0.
    #[must_use]
    pub fn parse(release: &str) -> Self {
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|n| n.parse().unwrap_or(0));
        Self(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

/// The default profile for a container with these capabilities in its bounding set.
#[must_use]
pub fn default_profile(bounding: CapSet, kernel: KernelVersion) -> LinuxSeccomp {
    let has = |name: &str| name.parse().is_ok_and(|cap| bounding.contains(cap));
    let mut calls: Vec<LinuxSyscall> = vec![allow(&ALWAYS.join(" "), Vec::new())];
    if kernel >= TRACING_SINCE {
        calls.push(allow(TRACING, Vec::new()));
    }
    for (capability, names) in WITH_CAPABILITY {
        if has(capability) {
            calls.push(allow(names, Vec::new()));
        }
    }
    if !has("SYS_ADMIN") {
        let no_namespaces = condition(LinuxSeccompOperator::ScmpCmpMaskedEq, NAMESPACES.into());
        calls.push(allow("clone", vec![no_namespaces]));
        // Its flags are behind a pointer. Told that there is no clone3, C libraries use clone.
        let mut clone3 = LinuxSyscall::default();
        clone3.set_names(vec!["clone3".to_owned()]);
        clone3
            .set_action(LinuxSeccompAction::ScmpActErrno)
            .set_errno_ret(Some(ENOSYS));
        calls.push(clone3);
    }
    let equal = |name, value| allow(name, vec![condition(LinuxSeccompOperator::ScmpCmpEq, value)]);
    calls.extend(PERSONALITIES.iter().map(|value| equal("personality", *value)));
    calls.push(allow(
        "socket",
        vec![condition(LinuxSeccompOperator::ScmpCmpLt, FAMILIES_BELOW)],
    ));
    calls.extend(FAMILIES.iter().map(|family| equal("socket", *family)));

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(vec![
            Arch::ScmpArchX86_64,
            Arch::ScmpArchX86,
            Arch::ScmpArchX32,
        ]))
        .set_syscalls(Some(calls));
    profile
}

fn allow(names: &str, conditions: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut call = LinuxSyscall::default();
    call.set_names(names.split_ascii_whitespace().map(str::to_owned).collect());
    call.set_action(LinuxSeccompAction::ScmpActAllow);
    call.set_args((!conditions.is_empty()).then_some(conditions));
    call
}

/// A condition on the first argument.
fn condition(op: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    let built = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .op(op)
        .value(value)
        .value_two(0u64)
        .build();
    built.expect("every field has a default, so building cannot fail")
}
