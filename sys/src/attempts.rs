//! Attempts at what a sandbox refuses, for tests: each is harmless where it succeeds, and tells the
//! kernel's answer.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// The names that [`call`] knows.
pub const CALLS: &[&str] = &[
    "execve",
    "fork",
    "vfork",
    "clone3",
    "unshare",
    "setns",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "bpf",
    "keyctl",
    "add_key",
    "io_uring_setup",
    "userfaultfd",
    "perf_event_open",
    "kexec_load",
    "init_module",
    "finit_module",
    "delete_module",
    "memfd_create",
    "personality",
    "kill",
    "tkill",
    "tgkill",
    "pidfd_open",
    "pidfd_send_signal",
    "pidfd_getfd",
    "seccomp",
    "setuid",
    "setgroups",
    "capset",
    "shmget",
    "mknodat",
    "renameat2",
    "mkdirat",
    "linkat",
    "symlinkat",
    "truncate",
    "fchownat",
    "prlimit64",
    "raw socket",
    "packet socket",
    "SCTP socket",
    "MPTCP socket",
    "ICMP socket",
    "netfilter netlink",
    "vsock socket",
    "write and execute",
    "anonymous and executable",
    "made executable",
    "TIOCSTI",
    "set dumpable",
    "new namespace thread",
];

/// Makes the call of this name, with arguments that change nothing outside of this process.
/// `other` is the process id of another process of the same user, which is a child or a parent.
///
/// # Errors
/// What the kernel says.
///
/// # Panics
/// On a name that is not in [`CALLS`].
pub fn call(name: &str, other: u32) -> io::Result<()> {
    let other = i64::from(other);
    // A pointer at which nothing is, so that a call that gets so far fails with EFAULT.
    let nowhere = 0;
    let (number, arguments): (i64, [i64; 6]) = match name {
        "fork" | "vfork" => return forked(name),
        "raw socket" => return socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
        "packet socket" => return socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0),
        "SCTP socket" => return socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        "MPTCP socket" => return socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        "ICMP socket" => return socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        "vsock socket" => return socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        "netfilter netlink" => {
            return socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER);
        }
        "write and execute" => {
            return map(libc::PROT_WRITE | libc::PROT_EXEC, false);
        }
        "anonymous and executable" => return map(libc::PROT_EXEC, false),
        "made executable" => return map(libc::PROT_READ, true),
        "execve" => (libc::SYS_execve, [nowhere; 6]),
        "clone3" => (libc::SYS_clone3, [nowhere; 6]),
        // No namespace at all: allowed to everybody.
        "unshare" => (libc::SYS_unshare, [0; 6]),
        "setns" => (libc::SYS_setns, [-1, 0, 0, 0, 0, 0]),
        "mount" => (libc::SYS_mount, [nowhere; 6]),
        "umount2" => (libc::SYS_umount2, [nowhere; 6]),
        "pivot_root" => (libc::SYS_pivot_root, [nowhere; 6]),
        "chroot" => (libc::SYS_chroot, [nowhere; 6]),
        "ptrace" => (
            libc::SYS_ptrace,
            [i64::from(libc::PTRACE_PEEKDATA), other, 0, 0, 0, 0],
        ),
        "process_vm_readv" => (libc::SYS_process_vm_readv, [other, 0, 0, 0, 0, 0]),
        "process_vm_writev" => (libc::SYS_process_vm_writev, [other, 0, 0, 0, 0, 0]),
        "bpf" => (libc::SYS_bpf, [-1, nowhere, 0, 0, 0, 0]),
        "keyctl" => (libc::SYS_keyctl, [-1, 0, 0, 0, 0, 0]),
        "add_key" => (libc::SYS_add_key, [nowhere; 6]),
        "io_uring_setup" => (libc::SYS_io_uring_setup, [1, nowhere, 0, 0, 0, 0]),
        "userfaultfd" => (libc::SYS_userfaultfd, [-1, 0, 0, 0, 0, 0]),
        "perf_event_open" => (libc::SYS_perf_event_open, [nowhere; 6]),
        "kexec_load" => (libc::SYS_kexec_load, [0, 0, nowhere, -1, 0, 0]),
        "init_module" => (libc::SYS_init_module, [nowhere; 6]),
        "finit_module" => (libc::SYS_finit_module, [-1, 0, 0, 0, 0, 0]),
        "delete_module" => (libc::SYS_delete_module, [nowhere; 6]),
        "memfd_create" => (libc::SYS_memfd_create, [nowhere; 6]),
        "personality" => (libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]),
        "kill" => (libc::SYS_kill, [other, 0, 0, 0, 0, 0]),
        "tkill" => (libc::SYS_tkill, [other, 0, 0, 0, 0, 0]),
        "tgkill" => (libc::SYS_tgkill, [other, other, 0, 0, 0, 0]),
        "pidfd_open" => (libc::SYS_pidfd_open, [other, -1, 0, 0, 0, 0]),
        "pidfd_send_signal" => (libc::SYS_pidfd_send_signal, [-1, 0, 0, 0, 0, 0]),
        "pidfd_getfd" => (libc::SYS_pidfd_getfd, [-1, 0, 0, 0, 0, 0]),
        "seccomp" => (libc::SYS_seccomp, [-1, 0, nowhere, 0, 0, 0]),
        // To whom it is already.
        // SAFETY: takes nothing and cannot fail.
        "setuid" => (
            libc::SYS_setuid,
            [i64::from(unsafe { libc::getuid() }), 0, 0, 0, 0, 0],
        ),
        "setgroups" => (libc::SYS_setgroups, [-1, nowhere, 0, 0, 0, 0]),
        "capset" => (libc::SYS_capset, [nowhere; 6]),
        "shmget" => (libc::SYS_shmget, [0; 6]),
        "mknodat" => (libc::SYS_mknodat, [nowhere; 6]),
        "renameat2" => (libc::SYS_renameat2, [nowhere; 6]),
        "mkdirat" => (libc::SYS_mkdirat, [nowhere; 6]),
        "linkat" => (libc::SYS_linkat, [nowhere; 6]),
        "symlinkat" => (libc::SYS_symlinkat, [nowhere; 6]),
        "truncate" => (libc::SYS_truncate, [nowhere; 6]),
        "fchownat" => (libc::SYS_fchownat, [nowhere; 6]),
        "prlimit64" => (libc::SYS_prlimit64, [other, 0, 0, 0, 0, 0]),
        "TIOCSTI" => (
            libc::SYS_ioctl,
            [-1, libc::TIOCSTI as i64, nowhere, 0, 0, 0],
        ),
        "set dumpable" => (
            libc::SYS_prctl,
            [i64::from(libc::PR_SET_DUMPABLE), -1, 0, 0, 0, 0],
        ),
        // A thread cannot be in a namespace of users of its own, whoever asks.
        "new namespace thread" => {
            let thread = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;
            let flags = i64::from(thread | libc::CLONE_NEWUSER);
            (libc::SYS_clone, [flags, 0, 0, 0, 0, 0])
        }
        _ => panic!("no such attempt: {name}"),
    };
    // SAFETY: where the kernel writes through an argument, it is null or a number that is no
    // address, which the kernel checks; the process ids, the empty vectors and the invalid commands
    // change nothing. None of these creates a process or a thread: clone fails (EINVAL) on its flags.
    let result = unsafe {
        libc::syscall(
            number,
            arguments[0],
            arguments[1],
            arguments[2],
            arguments[3],
            arguments[4],
            arguments[5],
        )
    };
    answer(result)
}

fn answer(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A child that ends at once.
fn forked(name: &str) -> io::Result<()> {
    let number = i64::from(libc::SIGCHLD);
    let flags = match name {
        // Memory of its own in any case: what differs is the flag that says "not until then".
        "vfork" => number | i64::from(libc::CLONE_VFORK),
        _ => number,
    };
    // SAFETY: as fork(2): the child has a copy of this memory and makes one call, which is safe in a
    // copy of a process with threads.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: ends the child without running anything of ours.
        unsafe { libc::_exit(0) }
    }
    answer(child)?;
    // SAFETY: waits for the child that was just made; null: its state is not wanted.
    unsafe { libc::waitpid(child as libc::pid_t, std::ptr::null_mut(), 0) };
    Ok(())
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers.
    let descriptor = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if descriptor == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it.
    let _close = unsafe { OwnedFd::from_raw_fd(descriptor) };
    Ok(())
}

/// Maps a page with these rights; then asks for the right to execute it.
fn map(rights: libc::c_int, then_execute: bool) -> io::Result<()> {
    const PAGE: usize = 4096;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new page at an address of the kernel's choice, which nobody uses.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, rights, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let result = if then_execute {
        // SAFETY: the page is ours; nothing is in it.
        answer(unsafe { libc::mprotect(page, PAGE, libc::PROT_EXEC) }.into())
    } else {
        Ok(())
    };
    // SAFETY: the page is ours, and nobody has a reference into it.
    unsafe { libc::munmap(page, PAGE) };
    result
}

/// Sends with the flag that also connects (TCP Fast Open, tcp(7)).
///
/// # Errors
/// What the kernel says.
pub fn send_and_connect(socket: &std::net::TcpStream, flag: bool) -> io::Result<()> {
    let flags = libc::MSG_NOSIGNAL | if flag { libc::MSG_FASTOPEN } else { 0 };
    // SAFETY: one byte, which lives as long as the call; the descriptor is open.
    let sent = unsafe { libc::send(socket.as_raw_fd(), b"x".as_ptr().cast(), 1, flags) };
    answer(sent as libc::c_long)
}
