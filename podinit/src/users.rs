//! A user namespace for a pod. Only a process of the parent namespace may give it more than one id, so podd writes
//! the maps while this process waits; what podd keeps is the namespace alone.

use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::Result;
use sys::clone::{flag, unshare};

/// Makes the namespace, sends it to podd and waits until the socket closes.
pub fn make() -> Result<()> {
    let podd = sys::rt::inherited(3)?;
    if let Err(errno) = unshare(flag::NEWUSER) {
        // Instead of the namespace: podd tells an operator why, from the number.
        sys::fdpass::send(&podd, &errno.raw_os_error().to_le_bytes(), &[])?;
        return Err(errno);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = openat(CWD, c"/proc/self/ns/user", flags, Mode::empty())?;
    sys::fdpass::send(&podd, b"user", &[namespace.as_fd()])?;
    let _closed = sys::fdpass::receive(&podd, &mut [0u8; 1], &mut alloc::vec::Vec::new());
    Ok(())
}
