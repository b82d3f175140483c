//! `moat check`, and what it reports.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::NamedTempFile;

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

/// Of these scenarios exactly the first fail on a monitor, and all hold when what was observed is judged by
/// someone who knows what the kernel lacks.
#[track_caller]
pub fn assert_fails_on(vmm: &str, kernel: &str, lacks: &str, failing: &[&str], passing: &[&str]) {
    let only = [failing, passing].concat().join(",");
    let output = check(kernel, &["--vmm", vmm, "--only", &only]);
    assert_eq!(with_verdict(&output, "failed"), failing, "{kernel}");
    assert_eq!(with_verdict(&output, "passed"), passing, "{kernel}");
    assert_eq!(output.status.code(), Some(1), "{kernel}");
    let output = judge(&output, lacks);
    assert_eq!(with_verdict(&output, "failed"), [""; 0], "{kernel} without {lacks}");
    assert_eq!(with_verdict(&output, "skipped"), [""; 0], "{kernel} without {lacks}");
    assert_eq!(output.status.code(), Some(0), "{kernel} without {lacks}");
}

/// Judges what a report has recorded, of a kernel that is known to lack something.
fn judge(report: &Output, lacks: &str) -> Output {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&report.stdout).unwrap();
    Command::new(env!("CARGO_BIN_EXE_moat"))
        .args(["check", "--json", "--expect-without", lacks, "--judge"])
        .arg(file.path())
        .output()
        .unwrap()
}
