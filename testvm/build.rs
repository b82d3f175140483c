//! Builds the agent, so that testvm contains it, and `moat` is a single binary.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for input in ["agent", "agent-protocol", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }

    // A target directory of its own: the outer cargo holds the lock of its own one.
    let target = out.join("target");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo.current_dir(&workspace).args(["rustc", "--package", "agent", "--profile", "agent"]);
    if workspace.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    cargo.arg("--target-dir").arg(&target);
    // Static, because a guest has no libraries; only here, because proc macros cannot be.
    cargo.args(["--", "-C", "target-feature=+crt-static"]);
    // The agent is built without clippy, sanitizers or coverage, however testvm is built.
    for variable in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(variable);
    }
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "the agent does not build: {status}; cargo's errors are above");

    fs::copy(target.join("agent/agent"), out.join("agent")).expect("cargo has built the agent");
}
