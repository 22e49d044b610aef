//! Compiles `proto/` into Rust types and tonic services, without protoc.
//!
//! Writes `runtime.v1.rs`, the encoded descriptor set `cri.bin` and the names of all calls, `rpcs.rs`, to `OUT_DIR`.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

/// Both services; between them they import every other file.
const ROOTS: [&str; 2] = [
    "runtime/v1/runtime_service.proto",
    "runtime/v1/image_service.proto",
];

/// Messages that hold secrets: `src/redact.rs` writes their `Debug` by hand.
const REDACTED: [&str; 2] = [".runtime.v1.AuthConfig", ".runtime.v1.KeyValue"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(ROOTS)?;

    // Comments become rustdoc, yet have no place in the descriptor set.
    let described = compiler.include_source_info(true).file_descriptor_set();
    let encoded = compiler.include_source_info(false).encode_file_descriptor_set();

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("cri.bin"), encoded)?;

    let services = described.file.iter().flat_map(|file| &file.service);
    let rpcs: Vec<&str> = services.flat_map(|s| &s.method).map(|m| m.name()).collect();
    fs::write(out.join("rpcs.rs"), format!("&{rpcs:?}"))?;

    tonic_prost_build::configure()
        .skip_debug(REDACTED)
        .compile_fds(described)?;
    Ok(())
}
