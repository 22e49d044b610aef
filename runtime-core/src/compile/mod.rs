//! OCI specs to plans: everything that can be wrong is refused here, without touching the kernel.

mod caps;

pub use caps::{CapSet, UnknownCap};
