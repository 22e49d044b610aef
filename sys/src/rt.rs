//! The run time of a static program without libc: entry point, memory functions, allocator, panic.
//!
//! Programs have one thread unless they start another ([`crate::thread`]). Use [`entry!`](crate::entry) once in the binary.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::raw::syscall;
use linux_raw_sys::general::__NR_mmap;

/// Makes `fn(Args) -> u32` the program; its result is the exit status.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn podd_program(args: $crate::rt::Args) -> u32 {
            $main(args)
        }
    };
}

unsafe extern "Rust" {
    fn podd_program(args: Args) -> u32;
}

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

/// # Safety
/// Called once by `_start` with the initial stack pointer.
unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel puts argc and the argv pointers at the initial stack pointer (x86-64 psABI 3.4.1);
    // podd_program is defined by the entry! macro with this signature.
    let status = unsafe {
        podd_program(Args {
            count: *stack,
            argv: stack.add(1).cast(),
        })
    };
    crate::clone::exit(status)
}

/// The program's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    count: usize,
    argv: *const *const core::ffi::c_char,
}

impl Args {
    /// The nth argument; 0 is the program's name.
    pub fn get(&self, n: usize) -> Option<&'static CStr> {
        // SAFETY: argv has count pointers to NUL-terminated strings that live as long as the process.
        (n < self.count).then(|| unsafe { CStr::from_ptr(*self.argv.add(n)) })
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    crate::clone::exit(101)
}

/// The personality routine that precompiled `core` refers to; with panic=abort it is never called.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As the name says: `_Unwind_Resume` is referred to by precompiled `alloc` and never called.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::clone::exit(101)
}

/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller promises n valid bytes on both sides that do not overlap; the direction flag is clear.
    unsafe {
        asm!("rep movsb", inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags))
    };
    to
}

/// # Safety
/// As memmove(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= n {
        // SAFETY: a forward copy is correct because the destination does not start inside the source.
        return unsafe { memcpy(to, from, n) };
    }
    // SAFETY: the regions overlap with the destination above the source, so bytes are copied from the last to the
    // first; the direction flag is cleared again as the ABI demands.
    unsafe {
        asm!("std", "rep movsb", "cld",
            inout("rcx") n => _, inout("rdi") to.wrapping_add(n).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(n).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller promises n writable bytes; the low byte of value is stored.
    unsafe {
        asm!("rep stosb", inout("rcx") n => _, inout("rdi") to => _, in("eax") value, options(nostack, preserves_flags))
    };
    to
}

/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: the caller promises n readable bytes on both sides; volatile keeps this loop from becoming a
        // call of memcmp.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
/// As bcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's promise is memcmp's.
    unsafe { memcmp(a, b, n) }
}

/// # Safety
/// As strlen(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(s: *const u8) -> usize {
    let mut n = 0;
    // SAFETY: the caller promises a NUL-terminated string.
    while unsafe { s.add(n).read_volatile() } != 0 {
        n += 1;
    }
    n
}

/// Free lists of power-of-two blocks from 16 bytes to 64 KiB, carved from chunks of 64 KiB that are mapped when
/// the first block needs them; larger blocks are mapped alone and never reused.
struct FreeLists {
    /// Held for some instructions, so that who waits gives up its turn and no more.
    taken: AtomicBool,
    state: UnsafeCell<State>,
}

impl FreeLists {
    fn alone<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        while self.taken.swap(true, Ordering::Acquire) {
            rustix::thread::sched_yield();
        }
        // SAFETY: one thread at a time is here, and no reference to the state leaves this function.
        let done = work(unsafe { &mut *self.state.get() });
        self.taken.store(false, Ordering::Release);
        done
    }
}

struct State {
    heads: [*mut u8; CLASSES],
    bump: *mut u8,
    left: usize,
}

const SMALLEST: usize = 4;
const CLASSES: usize = 13;
const CHUNK: usize = 64 * 1024;

// SAFETY: the state is reached through alone() only.
unsafe impl Sync for FreeLists {}

#[global_allocator]
static ALLOCATOR: FreeLists = FreeLists {
    taken: AtomicBool::new(false),
    state: UnsafeCell::new(State {
        heads: [core::ptr::null_mut(); CLASSES],
        bump: core::ptr::null_mut(),
        left: 0,
    }),
};

impl State {
    /// A block of a class; null when there is no memory.
    fn take(&mut self, class: usize) -> *mut u8 {
        let head = self.heads[class];
        if !head.is_null() {
            // SAFETY: a free block holds the next one's address in its first word.
            self.heads[class] = unsafe { head.cast::<*mut u8>().read() };
            return head;
        }
        let size = 1usize << (class + SMALLEST);
        let skip = self.bump.addr().wrapping_neg() % size.min(4096);
        if self.left < size + skip {
            self.bump = map(CHUNK);
            self.left = if self.bump.is_null() { 0 } else { CHUNK };
            if self.left < size {
                return core::ptr::null_mut();
            }
            self.left -= size;
            let block = self.bump;
            self.bump = block.wrapping_add(size);
            return block;
        }
        let block = self.bump.wrapping_add(skip);
        self.bump = block.wrapping_add(size);
        self.left -= size + skip;
        block
    }
}

fn class(layout: Layout) -> usize {
    let size = layout.size().max(layout.align()).max(1 << SMALLEST);
    size.next_power_of_two().trailing_zeros() as usize - SMALLEST
}

fn map(size: usize) -> *mut u8 {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    // SAFETY: a new anonymous mapping touches nothing that exists.
    match unsafe { syscall(__NR_mmap, [0, size, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) } {
        Ok(address) => core::ptr::with_exposed_provenance_mut(address),
        Err(_) => core::ptr::null_mut(),
    }
}

// SAFETY: blocks are aligned to their power-of-two size up to a page (chunks are page-aligned and carved in
// class-size steps after rounding), never handed out twice before they are freed, and large enough for the layout.
unsafe impl GlobalAlloc for FreeLists {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let class = class(layout);
        if layout.align() > 4096 {
            return core::ptr::null_mut();
        }
        if class >= CLASSES {
            return map(layout.size());
        }
        self.alone(|state| state.take(class))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let class = class(layout);
        if class >= CLASSES {
            return;
        }
        self.alone(|state| {
            // SAFETY: the block was handed out for this class, so that it is free now and at least 16 bytes.
            unsafe { block.cast::<*mut u8>().write(state.heads[class]) };
            state.heads[class] = block;
        });
    }
}

/// Takes ownership of an fd that the program was started with, and makes it close-on-exec. Each number once.
///
/// # Errors
/// `EBADF` if the number is not open.
pub fn inherited(number: u32) -> rustix::io::Result<rustix::fd::OwnedFd> {
    use rustix::fd::FromRawFd;
    let raw = i32::try_from(number).map_err(|_| rustix::io::Errno::BADF)?;
    // SAFETY: fcntl on a number that may or may not be open; nothing is owned yet.
    let borrowed = unsafe { rustix::fd::BorrowedFd::borrow_raw(raw) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the number is open, it was inherited from the creator of this process, and by this function's
    // contract it is taken once.
    Ok(unsafe { rustix::fd::OwnedFd::from_raw_fd(raw) })
}

/// Standard input, output and error, which podinit gives to every stage.
#[must_use]
pub fn stdio() -> [rustix::fd::BorrowedFd<'static>; 3] {
    // SAFETY: programs of this run time are started with 0, 1 and 2 open, and never close them: they are replaced
    // in place.
    [0, 1, 2].map(|number| unsafe { rustix::fd::BorrowedFd::borrow_raw(number) })
}
