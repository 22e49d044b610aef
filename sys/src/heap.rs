//! The C library's heap.

use core::ffi::c_int;

/// `M_ARENA_MAX` of malloc.h.
const ARENA_MAX: c_int = -8;

unsafe extern "C" {
    fn mallopt(param: c_int, value: c_int) -> c_int;
}

/// Keeps all threads to one arena from now on: mallopt(3), `M_ARENA_MAX`. glibc would give each thread one, up to
/// eight for each processor, and what is free in one is of no use to the others.
pub fn one_arena() {
    // SAFETY: mallopt takes two numbers and may be called at any time; it can only fail to have an effect.
    unsafe { mallopt(ARENA_MAX, 1) };
}
