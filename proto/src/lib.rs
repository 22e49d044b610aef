//! The Kubernetes Container Runtime Interface, v1, as of Kubernetes 1.37: message types, clients
//! and server traits, generated from the `.proto` files of this crate. Only the `Debug` of messages
//! that hold secrets is written by hand: it prints a secret as `…`.
//!
//! A server implements [`v1::runtime_service_server::RuntimeService`] and
//! [`v1::image_service_server::ImageService`].
//!
//! The published `k8s-cri` crate is not used because it stops at about Kubernetes 1.32: it lacks
//! nine calls, and it declares [`v1::KeyValue::value`] a string, so that one environment variable
//! that is not UTF-8 makes a whole `CreateContainer` fail to decode.

mod redact;

/// Package `runtime.v1`.
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// The encoded `google.protobuf.FileDescriptorSet` of package `runtime.v1`, without comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("cri");

/// The names of all calls of both services, as in the URIs of requests.
pub const RPCS: &[&str] = include!(concat!(env!("OUT_DIR"), "/rpcs.rs"));
