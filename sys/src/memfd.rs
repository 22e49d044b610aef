//! Sealed memory files: programs and plans that nobody can change after they were made.

use crate::raw::syscall;
use core::ffi::CStr;
use linux_raw_sys::general::__NR_mmap;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::{Errno, Result};

/// What a memory file is for; kernels from 6.3 want to know (memfd_create(2), vm.memfd_noexec).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To be executed.
    Program,
    /// To be read.
    Data,
}

/// `MFD_NOEXEC_SEAL` and `MFD_EXEC` of linux/memfd.h.
const NOEXEC_SEAL: u32 = 0x8;
const EXEC: u32 = 0x10;

/// A memory file with `content` that can be neither written, grown nor shrunk.
///
/// # Errors
/// `EACCES` for a program where vm.memfd_noexec is 2; the caller falls back to a file only root can write.
pub fn sealed(name: &CStr, content: &[u8], purpose: Use) -> Result<OwnedFd> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let bit = MemfdFlags::from_bits_retain(if purpose == Use::Program {
        EXEC
    } else {
        NOEXEC_SEAL
    });
    let fd = match memfd_create(name, base | bit) {
        // Kernels before 6.3 know neither flag.
        Err(Errno::INVAL) => memfd_create(name, base)?,
        other => other?,
    };
    let mut rest = content;
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest)?;
        rest = &rest[n..];
    }
    fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(fd)
}

/// The content of a sealed memory file, mapped read-only for the rest of the process's life.
///
/// # Errors
/// `EPERM` if the file could still change under the reader.
pub fn map_sealed(fd: impl AsFd) -> Result<&'static [u8]> {
    let fd = fd.as_fd();
    let needed = SealFlags::WRITE | SealFlags::SHRINK;
    if !fcntl_get_seals(fd)?.contains(needed) {
        return Err(Errno::PERM);
    }
    let size = usize::try_from(fstat(fd)?.st_size).map_err(|_| Errno::FBIG)?;
    if size == 0 {
        return Ok(&[]);
    }
    const PROT_READ: usize = 1;
    const MAP_PRIVATE: usize = 2;
    let number = fd.as_raw_fd().cast_unsigned() as usize;
    // SAFETY: a new private mapping touches no existing memory. The seals, checked above, make its content
    // immutable and its length final, so a shared slice of it stays valid; it is never unmapped.
    unsafe {
        let address = syscall(__NR_mmap, [0, size, PROT_READ, MAP_PRIVATE, number, 0])?;
        Ok(core::slice::from_raw_parts(
            core::ptr::with_exposed_provenance(address),
            size,
        ))
    }
}
