//! The system call instruction. Nothing outside this crate sees it.

use core::arch::asm;
use rustix::io::{Errno, Result};

/// Makes a system call with up to six arguments and turns the kernel's answer into a result.
///
/// # Safety
/// The arguments must be what system call `number` expects: pointers must be valid for what the kernel reads or
/// writes through them, and the call must not break an invariant of the program (closing a foreign fd,
/// unmapping memory in use).
pub(crate) unsafe fn syscall(number: u32, args: [usize; 6]) -> Result<usize> {
    let ret: isize;
    // SAFETY: the kernel clobbers rax, rcx and r11 only; memory effects are the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as usize => ret,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    check(ret)
}

/// Splits a raw return value: the kernel answers -4095..=-1 for an error.
pub(crate) fn check(ret: isize) -> Result<usize> {
    if (-4095..0).contains(&ret) {
        // The range check makes the negated value a small positive number.
        Err(Errno::from_raw_os_error(i32::try_from(-ret).unwrap_or(i32::MAX)))
    } else {
        Ok(ret.cast_unsigned())
    }
}
