//! Images: pulled from registries, unpacked into overlayfs layers, stored and queried.

mod config;
mod decode;
mod digest;
mod error;
mod reference;
mod sums;
mod tar;
mod unpack;

pub use config::{Config, Durability, Endpoint, Limits, RegistryConfig, Timeouts};
pub use digest::{Algorithm, Digest};
pub use error::{Error, ErrorKind};
pub use reference::{Reference, Target};
