//! bpf(2), as far as control of devices in cgroup v2 needs it: load a program, attach it to a cgroup.
//!
//! Knows nothing of what the programs decide. The kernel closes the fds of programs on exec by itself, and its
//! memory for them has not counted against `RLIMIT_MEMLOCK` since Linux 5.11.

use core::ffi::CStr;

use crate::raw::syscall;
use linux_raw_sys::general::__NR_bpf;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::{Errno, Result};

/// `BPF_PROG_LOAD` and `BPF_PROG_ATTACH` of linux/bpf.h.
const PROG_LOAD: usize = 5;
const PROG_ATTACH: usize = 8;
/// `BPF_PROG_TYPE_CGROUP_DEVICE` and the attach type `BPF_CGROUP_DEVICE`.
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: cgroups below may have programs too; access needs the consent of all of them.
const ALLOW_MULTI: u32 = 2;
/// Bytes of `struct bpf_insn`.
const INSTRUCTION: usize = 8;
/// Device programs call no helper that wants the GPL.
const LICENSE: &CStr = c"Apache-2.0";
/// What tools show it as: `BPF_OBJ_NAME_LEN` bytes, the last one NUL.
const NAME: [u8; 16] = *b"podd_devices\0\0\0\0";

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the last field used; the kernel takes the rest for zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program: `program` is an array of `struct bpf_insn`, 8 bytes an
/// instruction. The kernel verifies it (bpf(2)).
///
/// # Errors
/// `EINVAL` where the kernel lacks `CONFIG_CGROUP_BPF` or refuses the program, `EPERM` without `CAP_BPF`.
pub fn load_cgroup_device(program: &[u8]) -> Result<OwnedFd> {
    if !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Errno::INVAL);
    }
    let attr = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len() / INSTRUCTION).map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: NAME,
        prog_ifindex: 0,
        expected_attach_type: ATTACH_CGROUP_DEVICE,
    };
    // EAGAIN: a signal came while the program was verified.
    let fd = loop {
        // SAFETY: attr is live and of the size given; it points to live memory of insn_cnt instructions and to a
        // NUL-terminated license. The kernel only reads.
        let loaded = unsafe {
            syscall(
                __NR_bpf,
                [PROG_LOAD, &raw const attr as usize, size_of::<Load>(), 0, 0, 0],
            )
        };
        match loaded {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => break other?,
        }
    };
    let fd = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this fd for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a loaded program to a cgroup v2 directory, beside those that it may have. It applies to every process
/// there and below, whenever it came, and stays until the cgroup is removed; the fd is not needed for that.
///
/// # Errors
/// `EPERM` where an ancestor has a program that allows no other, `EINVAL` where this program is there already.
pub fn attach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let attr = Attach {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: attr is live and of the size given, and holds numbers only.
    unsafe {
        syscall(
            __NR_bpf,
            [
                PROG_ATTACH,
                &raw const attr as usize,
                size_of::<Attach>(),
                0,
                0,
                0,
            ],
        )?
    };
    Ok(())
}
