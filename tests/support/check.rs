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

/// Of these scenarios exactly the first fail on a monitor, and all hold when one knows what the kernel
/// lacks.
#[track_caller]
pub fn assert_fails_on(vmm: &str, kernel: &str, lacks: &str, failing: &[&str], passing: &[&str]) {
    let only = [failing, passing].concat().join(",");
    let output = check(kernel, &["--vmm", vmm, "--only", &only]);
    assert_eq!(with_verdict(&output, "failed"), failing, "{kernel}");
    assert_eq!(with_verdict(&output, "passed"), passing, "{kernel}");
    assert_eq!(output.status.code(), Some(1), "{kernel}");
    let arguments = ["--vmm", vmm, "--only", &only, "--expect-without", lacks];
    let output = check(kernel, &arguments);
    assert_eq!(with_verdict(&output, "failed"), [""; 0], "{kernel} without {lacks}");
    assert_eq!(with_verdict(&output, "skipped"), [""; 0], "{kernel} without {lacks}");
    assert_eq!(output.status.code(), Some(0), "{kernel} without {lacks}");
}
