//! Numbers of the volume helper's protocol (volumes.rs of the binary).

/// Clone the mounts below the path as well.
pub const RECURSIVE: u32 = 1;
/// Create a missing path as a directory.
pub const CREATE: u32 = 2;
/// The longest SELinux context, without its NUL: fsconfig(2) takes no more.
pub const MAX_CONTEXT: usize = 255;
/// The largest request: flags, a path and its NUL, a context and its NUL.
pub const MAX_REQUEST: usize = 4 + 4096 + MAX_CONTEXT + 1;
/// The length of a reply: errno, kind, and number of the mount.
pub const REPLY: usize = 16;
/// What failed, in the place of the kind: the path could not be opened.
pub const OPEN: u32 = 0;
/// The volume could not be given its context.
pub const RELABEL: u32 = 1;
/// The path is a place of the node whose labels are not a container's.
pub const FORBIDDEN: u32 = 2;
