//! A second thread for a program of the run time without libc, and the lock that the two share.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use alloc::boxed::Box;
use linux_raw_sys::general::{__NR_clone3, clone_args};
use rustix::io::Result;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use rustix::thread::futex;

use crate::raw::check;

/// `CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM` of linux/sched.h.
const SHARED: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;

/// Room for a stack; what is never touched costs nothing.
const STACK: usize = 256 * 1024;
/// Below it, so that a stack that is too small ends the program.
const GUARD: usize = 4096;

struct Start<T: 'static> {
    data: &'static T,
    body: fn(&'static T) -> !,
}

/// Runs `body(data)` in a thread of its own, with the caller's blocked signals. There is no way to wait for it: it ends
/// with the program.
///
/// # Errors
/// The kernel gives no memory, or no further thread.
pub fn start<T: Sync>(data: &'static T, body: fn(&'static T) -> !) -> Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK;
    // SAFETY: a new anonymous mapping touches nothing that exists.
    let low = unsafe { mmap_anonymous(core::ptr::null_mut(), GUARD + STACK, ProtFlags::empty(), flags)? };
    let bottom = low.wrapping_byte_add(GUARD);
    // SAFETY: these pages are of the mapping above, which nobody else knows.
    unsafe { mprotect(bottom, STACK, MprotectFlags::READ | MprotectFlags::WRITE)? };
    // SAFETY: clone_args is a C struct of integers, for which zero is valid.
    let mut args: clone_args = unsafe { core::mem::zeroed() };
    args.flags = SHARED;
    args.stack = bottom as u64;
    args.stack_size = STACK as u64;
    let begin: &'static Start<T> = Box::leak(Box::new(Start { data, body }));
    let ret: isize;
    // SAFETY: args is valid; the new thread's stack is its own and is never unmapped; it calls enter with a value that
    // lives as long as the program, and never returns here. Shared state is behind T: Sync. The registers that carry
    // enter and its argument survive the system call.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") __NR_clone3 as usize => ret,
            inlateout("rdi") &raw const args => _,
            in("rsi") size_of::<clone_args>(),
            in("r12") enter::<T> as unsafe extern "C" fn(*const c_void) -> !,
            in("r13") core::ptr::from_ref(begin),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    check(ret).map(drop)
}

unsafe extern "C" fn enter<T: 'static>(begin: *const c_void) -> ! {
    // SAFETY: the pointer is that of start(), to a value that lives as long as the program.
    let begin = unsafe { &*begin.cast::<Start<T>>() };
    (begin.body)(begin.data)
}

/// A value for one thread at a time. To lock it when nobody else does costs no system call.
#[derive(Debug)]
pub struct Mutex<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

const FREE: u32 = 0;
const LOCKED: u32 = 1;
const WAITED_FOR: u32 = 2;

// SAFETY: the value is reached through a Guard only, and there is one at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// A free one.
    pub const fn new(value: T) -> Self {
        Self {
            state: AtomicU32::new(FREE),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits until the value is free.
    pub fn lock(&self) -> Guard<'_, T> {
        let free = self
            .state
            .compare_exchange(FREE, LOCKED, Ordering::Acquire, Ordering::Relaxed);
        if free.is_err() {
            while self.state.swap(WAITED_FOR, Ordering::Acquire) != FREE {
                let _woken_or_changed = futex::wait(&self.state, futex::Flags::PRIVATE, WAITED_FOR, None);
            }
        }
        Guard { mutex: self }
    }
}

/// The value of a [`Mutex`], until it is dropped.
#[derive(Debug)]
pub struct Guard<'m, T> {
    mutex: &'m Mutex<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and it is borrowed for as long.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if self.mutex.state.swap(FREE, Ordering::Release) == WAITED_FOR {
            let _nobody_waits = futex::wake(&self.mutex.state, futex::Flags::PRIVATE, 1);
        }
    }
}
