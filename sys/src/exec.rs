//! execve(2) for programs without libc.

use crate::raw::syscall;
use alloc::vec::Vec;
use core::ffi::CStr;
use linux_raw_sys::general::__NR_execve;
use rustix::io::Errno;

/// Becomes another program. Returns only on failure.
pub fn execve(path: &CStr, argv: &[&CStr], env: &[&CStr]) -> Errno {
    let list = |strings: &[&CStr]| -> Vec<*const u8> {
        strings
            .iter()
            .map(|s| s.as_ptr().cast())
            .chain([core::ptr::null()])
            .collect()
    };
    let (argv, env) = (list(argv), list(env));
    let args = [
        path.as_ptr() as usize,
        argv.as_ptr() as usize,
        env.as_ptr() as usize,
        0,
        0,
        0,
    ];
    // SAFETY: three pointers to NUL-terminated data that outlives the call; both lists end in a null pointer.
    match unsafe { syscall(__NR_execve, args) } {
        Err(errno) => errno,
        Ok(_) => Errno::NOEXEC,
    }
}
