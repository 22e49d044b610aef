//! Builds podinit and stage, the two static programs that podd carries inside (docs/process-model.md).
//!
//! They need another profile and other features than the rest of the workspace, so that cargo is asked once more,
//! in a target directory of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Sources that end up in the programs, relative to the workspace.
const SOURCES: [&str; 7] = [
    "podinit",
    "runtime-core/src/accounts.rs",
    "runtime-core/src/bin",
    "runtime-core/src/plan",
    "runtime-core/src/stage",
    "sys",
    "Cargo.lock",
];
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    // The addresses that the loader fills in take a word each, not three: 1.3 MB of the file and of memory less.
    // glibc 2.36, binutils 2.38.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", workspace.join(source).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (package, program) in [("podd-podinit", "podinit"), ("podd-runtime-core", "stage")] {
        let built = build(&workspace, &out.join("programs"), package, program);
        // A new file: a target directory may be a copy that shares its files with another by hard links.
        let _first_build_has_none = std::fs::remove_file(out.join(program));
        std::fs::copy(&built, out.join(program)).expect("the program that cargo just built can be copied");
    }
}

fn build(workspace: &Path, target_dir: &Path, package: &str, program: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").expect("cargo sets CARGO");
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace)
        .args([
            "build",
            "--locked",
            "--offline",
            "--profile",
            "tiny",
            "--target",
            TARGET,
        ])
        .args([
            "--no-default-features",
            "--features",
            "rt",
            "--package",
            package,
            "--bin",
            program,
        ])
        .arg("--target-dir")
        .arg(target_dir)
        // Nobody unwinds here: the index for that would be a fiftieth of the program.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Crelocation-model=static\x1f-Ctarget-feature=+crt-static\x1f-Clink-arg=-Wl,--no-eh-frame-hdr",
        )
        // What clippy, coverage or a wrapper ask of the outer build is not meant for these.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS");
    let status = command.status().expect("cargo can be run");
    assert!(
        status.success(),
        "cargo could not build {program}: see its messages above"
    );
    target_dir.join(TARGET).join("tiny").join(program)
}
