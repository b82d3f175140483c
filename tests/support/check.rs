//! `moat check`, and what it reports.

use std::path::Path;
use std::process::{Command, Output};

/// Runs `moat check` on a kernel that scripts/guest-kernel has made.
pub fn check(kernel: &str, arguments: &[&str]) -> Output {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels");
    Command::new(env!("CARGO_BIN_EXE_moat"))
        .args(["check", "--json", "--kernel"])
        .arg(kernels.join(kernel))
        .args(arguments)
        .output()
        .unwrap()
}

/// The scenarios of a report with this verdict.
pub fn with_verdict(output: &Output, verdict: &str) -> Vec<String> {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let scenarios = report["kernels"][0]["scenarios"].as_array().unwrap();
    scenarios
        .iter()
        .filter(|scenario| scenario["verdict"] == verdict)
        .map(|scenario| scenario["id"].as_str().unwrap().to_owned())
        .collect()
}
