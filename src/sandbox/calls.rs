//! The system calls that tlsward makes, and how: seccomp(2) refuses all others.
//!
//! Refused is an error to the caller (EPERM), never the end of the process: healthy connections go
//! on. Two filters, since one can answer with one error only: [`absent`] says "no such call"
//! (ENOSYS) where the C library then takes an older way, and [`allowed`] is the list. Of two answers
//! the stricter counts, so what stands in both is absent.
//!
//! The list comes from strace(1) of start, traffic, look-ups, rotation, reload and end, and from what
//! the two C libraries do in getaddrinfo(3), dlopen(3), pthread_create(3), abort(3); the whole of
//! tests/it runs with it. Calls without conditions cost next to
//! nothing: the kernel remembers for each number that no filter looks at it (Linux 5.11).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// Conditions that hold together; of several sets one must hold.
type Sets = Vec<SeccompRule>;

/// Refuses all other calls from now on, to this thread and those that it starts.
///
/// # Errors
/// Why it is not in force, in words.
pub(super) fn restrict() -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .ok()
        .filter(|arch| matches!(arch, TargetArch::x86_64 | TargetArch::aarch64))
        .ok_or_else(|| format!("no list of system calls for {}", std::env::consts::ARCH))?;
    // Both are made before either counts.
    let absent = absent(arch).map_err(|error| error.to_string())?;
    let allowed = allowed(arch).map_err(|error| error.to_string())?;
    for filter in [&absent, &allowed] {
        apply_filter(filter).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Its number is the same on every architecture; libc names it on some only.
const FCHMODAT2: i64 = 452;

/// Calls that a C library tries first and does without: thread creation by a structure that no
/// filter can look into, and calls that are newer than the list.
fn absent(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let calls = [
        libc::SYS_clone3,
        libc::SYS_faccessat2,
        FCHMODAT2,
        libc::SYS_close_range,
        libc::SYS_openat2,
        libc::SYS_epoll_pwait2,
        libc::SYS_futex_waitv,
    ];
    // 454 to 456: futex_wake, futex_wait, futex_requeue; 462: mseal. The same on every architecture.
    let newer = 454..=500;
    let rules = calls
        .into_iter()
        .chain(newer)
        .map(|call| (call, Vec::new()));
    SeccompFilter::new(
        rules.collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        arch,
    )?
    .try_into()
}

fn allowed(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Sets> = BTreeMap::new();
    let free = [
        FILES, SOCKETS, EVENTS, MEMORY, THREADS, TIME, OWN, SIGNALS, OLDER,
    ];
    for call in free.into_iter().flatten() {
        rules.insert(*call, Vec::new());
    }
    rules.extend(conditional()?);
    SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        arch,
    )?
    .try_into()
}

/// Reading files, looking at them, and the sockets' own entries: made by bind, removed at the end,
/// given a mode. What may be opened is Landlock's business.
const FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_faccessat,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_unlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchmod,
    libc::SYS_umask,
];

/// Sockets once they are there: which kinds there can be is a condition, below.
const SOCKETS: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
];

/// Waiting: tokio's epoll instances and how they are woken, notify's inotify.
const EVENTS: &[i64] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
];

/// Memory that holds no code: what does is a condition, below.
const MEMORY: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
];

/// Threads, whose creation is a condition, below; and what they wait for each other with.
const THREADS: &[i64] = &[
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const TIME: &[i64] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
];

/// Who and where the process is, and random numbers.
const OWN: &[i64] = &[
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
];

/// Signals that come in. Those that go out are a condition, below.
const SIGNALS: &[i64] = &[
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
];

/// The same under the older numbers that this architecture has too.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_chmod,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_getrlimit,
    libc::SYS_accept,
    libc::SYS_dup2,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[libc::SYS_accept];

/// Calls that are allowed with some arguments only.
fn conditional() -> Result<Vec<(i64, Sets)>, seccompiler::BackendError> {
    let is = |argument, value: u64| SeccompCondition::new(argument, Len::Dword, Op::Eq, value);
    let has = |argument, mask: u64, value: u64| {
        SeccompCondition::new(argument, Len::Dword, Op::MaskedEq(mask), value)
    };
    let word = |value: libc::c_int| u64::from(value as u32);
    let any_of = |argument, values: &[u64]| -> Result<Sets, seccompiler::BackendError> {
        let rules = values
            .iter()
            .map(|value| SeccompRule::new(vec![is(argument, *value)?]));
        rules.collect()
    };
    const KIND: u64 = 0xf;

    // TCP, UDP for look-ups, unix sockets, and the netlink with which getaddrinfo(3) learns which
    // addresses this machine has. No raw sockets and packets; and no MPTCP, SCTP or SMC, with
    // which one could get past Landlock's rules for TCP.
    let mut socket = vec![
        SeccompRule::new(vec![is(0, word(libc::AF_UNIX))?])?,
        SeccompRule::new(vec![
            is(0, word(libc::AF_NETLINK))?,
            is(2, word(libc::NETLINK_ROUTE))?,
        ])?,
    ];
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in [
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ] {
            for protocol in [0, protocol] {
                socket.push(SeccompRule::new(vec![
                    is(0, word(family))?,
                    has(1, KIND, word(kind))?,
                    is(2, word(protocol))?,
                ])?);
            }
        }
    }
    let pair = any_of(0, &[word(libc::AF_UNIX)])?;

    // A send that also connects (TCP Fast Open) would get past Landlock's rules for TCP.
    let no_fast_open = |argument| -> Result<Sets, seccompiler::BackendError> {
        let flag = word(libc::MSG_FASTOPEN);
        Ok(vec![SeccompRule::new(vec![has(argument, flag, 0)?])?])
    };

    // Non-blocking sockets, how much waits to be sent or read, and the terminal's width.
    let request = |request: libc::Ioctl| u64::from(request as u32);
    let ioctl = any_of(
        1,
        &[
            request(libc::FIONBIO),
            request(libc::FIOCLEX),
            request(libc::TIOCOUTQ),
            request(libc::FIONREAD),
            request(libc::TCGETS),
            request(libc::TCGETS2),
            request(libc::TIOCGWINSZ),
        ],
    )?;

    // Names of threads and of memory.
    let prctl = any_of(
        0,
        &[
            word(libc::PR_SET_NAME),
            word(libc::PR_GET_NAME),
            word(libc::PR_SET_VMA),
        ],
    )?;

    // Code comes from files, as dlopen(3) maps it, and never from memory that was written: no page
    // is both, and none that was written becomes executable.
    let (write, execute) = (word(libc::PROT_WRITE), word(libc::PROT_EXEC));
    let mmap = vec![
        SeccompRule::new(vec![has(2, execute, 0)?])?,
        SeccompRule::new(vec![
            has(2, write | execute, execute)?,
            has(3, word(libc::MAP_ANONYMOUS), 0)?,
        ])?,
    ];
    let mprotect = vec![SeccompRule::new(vec![has(2, execute, 0)?])?];

    // Threads of this process, in no other namespace; no process.
    let thread = word(libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND);
    let namespaces = word(
        libc::CLONE_NEWNS
            | libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET,
    );
    let clone = vec![SeccompRule::new(vec![has(
        0,
        thread | namespaces,
        thread,
    )?])?];

    // abort(3) signals itself.
    let own = std::process::id();
    let tgkill = any_of(0, &[u64::from(own)])?;
    // musl's, by the thread's number alone.
    let tkill = any_of(1, &[word(libc::SIGABRT)])?;

    // Its own limits: open files are raised at the start.
    let prlimit = any_of(0, &[0])?;

    let mut calls = vec![
        (libc::SYS_socket, socket),
        (libc::SYS_socketpair, pair),
        (libc::SYS_sendto, no_fast_open(3)?),
        (libc::SYS_sendmsg, no_fast_open(2)?),
        (libc::SYS_sendmmsg, no_fast_open(3)?),
        (libc::SYS_ioctl, ioctl),
        (libc::SYS_prctl, prctl),
        (libc::SYS_mmap, mmap),
        (libc::SYS_mprotect, mprotect),
        (libc::SYS_clone, clone),
        // The other filter answers, that there is no such call.
        (libc::SYS_clone3, Vec::new()),
        (libc::SYS_tgkill, tgkill),
        (libc::SYS_prlimit64, prlimit),
    ];
    if cfg!(target_env = "musl") {
        calls.push((libc::SYS_tkill, tkill));
    }
    Ok(calls)
}
