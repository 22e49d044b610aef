//! SPDY/3.1 as Kubernetes speaks it between the kubelet and a runtime: the server's side.
//!
//! The client opens every stream. Windows are neither kept nor updated, because the library that all Kubernetes
//! clients use does neither: a server that waited for an update would stop after 64 KiB.

mod connection;
mod frame;
mod headers;

pub use connection::{Connection, Opened};
