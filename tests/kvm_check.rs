//! `moat check` on every kernel: the checks hold where the kernel protects, and only there.

use std::path::Path;
use std::process::{Command, Output};

fn check(kernel: &str, arguments: &[&str]) -> Output {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels");
    Command::new(env!("CARGO_BIN_EXE_moat"))
        .args(["check", "--json", "--kernel"])
        .arg(kernels.join(kernel))
        .args(arguments)
        .output()
        .unwrap()
}

/// The scenarios of a report with this verdict.
fn with_verdict(output: &Output, verdict: &str) -> Vec<String> {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let scenarios = report["kernels"][0]["scenarios"].as_array().unwrap();
    scenarios
        .iter()
        .filter(|scenario| scenario["verdict"] == verdict)
        .map(|scenario| scenario["id"].as_str().unwrap().to_owned())
        .collect()
}

/// All holds but what is skipped.
#[track_caller]
fn assert_holds(kernel: &str, skipped: &[&str]) {
    let output = check(kernel, &[]);
    assert_eq!(with_verdict(&output, "failed"), [""; 0], "{kernel}");
    assert_eq!(with_verdict(&output, "skipped"), skipped, "{kernel}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_checks_hold_on_debian_6_1_cloud() {
    assert_holds("debian-6.1-cloud", &["VM21"]);
}

#[test]
fn the_checks_hold_on_debian_6_1() {
    assert_holds("debian-6.1", &["VM21"]);
}

#[test]
fn the_checks_hold_on_debian_6_12_cloud() {
    assert_holds("debian-6.12-cloud", &["VM21"]);
}

#[test]
fn the_checks_hold_on_debian_6_12() {
    assert_holds("debian-6.12", &["VM21"]);
}

#[test]
fn the_checks_hold_on_our_own_kernel() {
    assert_holds("protected", &[]);
}

#[test]
fn control_without_io_strict_devmem_held_mappings_survive() {
    let output = check("unprotected", &["--only", "VM11", "--only", "VM12", "--only", "VM13"]);
    assert_eq!(with_verdict(&output, "failed"), ["VM11", "VM12", "VM13"]);
    assert_eq!(output.status.code(), Some(1));
    let arguments = ["--expect-without", "io-strict-devmem", "--only", "VM11,VM12,VM13"];
    let output = check("unprotected", &arguments);
    assert_eq!(with_verdict(&output, "passed"), ["VM11", "VM12", "VM13"]);
    assert_eq!(output.status.code(), Some(0));
}
