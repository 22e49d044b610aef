//! Numbers of the volume helper's protocol (volumes.rs of the binary).

/// Clone the mounts below the path as well.
pub const RECURSIVE: u32 = 1;
/// Create a missing path as a directory.
pub const CREATE: u32 = 2;
/// The largest request: flags, a path and its NUL.
pub const MAX_REQUEST: usize = 4 + 4096;
/// The length of a reply: errno, kind, and number of the mount.
pub const REPLY: usize = 16;
