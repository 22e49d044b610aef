//! Images: pulled from registries, unpacked into overlayfs layers, stored and queried.
//!
//! [`Images`] is the whole interface. Data flows one way:
//!
//! ```text
//! registry (async HTTP, verified by digest) -> decode (gunzip, zstd) -> tar -> unpack -> store (commit, records)
//! ```
//!
//! Everything that comes from a registry is hostile until proven otherwise: bounded in size, verified by digest,
//! parsed without `unsafe`, and written only beneath a layer's own directory. The crate knows no pods and no CRI.

mod auth;
mod config;
mod decode;
mod digest;
mod error;
mod flight;
mod image;
mod images;
mod manifest;
mod pull;
mod reference;
mod registry;
mod store;
mod sums;
mod tar;
mod unpack;

pub use auth::Auth;
pub use config::{Config, Durability, Endpoint, Limits, RegistryConfig, Timeouts};
pub use digest::{Algorithm, Digest};
pub use error::{Error, ErrorKind};
pub use image::{Execution, Image, ImageConfig, ImageId};
pub use images::Images;
pub use reference::{Reference, Target};
pub use store::{LayerHold, Usage, Warning, erase_tree};
