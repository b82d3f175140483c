//! `moat check`, and what it reports.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::NamedTempFile;

/// Runs `moat check` on a kernel that scripts/guest-kernel has made.
pub fn check(kernel: &str, arguments: &[&str]) -> Output {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels");
    let output = Command::new(env!("CARGO_BIN_EXE_moat"))
        .args(["check", "--json", "--kernel"])
        .arg(kernels.join(kernel))
        .args(arguments)
        .output()
        .unwrap();
    note_times(kernel, &report(&output));
    output
}

/// Writes how long each boot and each scenario took to where scripts/test looks for it.
fn note_times(kernel: &str, report: &Value) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/test-output");
    let vmm = report["vmm"].as_str().unwrap();
    let line = |what: &Value, is: &str, milliseconds: &Value| {
        let (what, seconds) = (what.as_str().unwrap(), milliseconds.as_f64().unwrap() / 1000.0);
        format!("{seconds:8.1} s  {kernel} on {vmm}: {what}{is}\n")
    };
    let guests = report["guests"].as_array().unwrap().iter();
    let boots =
        guests.map(|guest| line(&guest["profile"], " guest boots", &guest["boot_milliseconds"]));
    let scenarios = report["scenarios"].as_array().unwrap().iter();
    let scenarios = scenarios.map(|scenario| line(&scenario["id"], "", &scenario["milliseconds"]));
    let lines: String = boots.chain(scenarios).collect();
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(format!("check-{kernel}-{vmm}.times")), lines).unwrap();
}

/// The scenarios of a report with this verdict.
pub fn with_verdict(output: &Output, verdict: &str) -> Vec<String> {
    let scenarios = scenarios(output);
    let of_verdict = scenarios.iter().filter(|scenario| scenario["verdict"] == verdict);
    of_verdict.map(|scenario| scenario["id"].as_str().unwrap().to_owned()).collect()
}

fn scenarios(output: &Output) -> Vec<Value> {
    report(output)["scenarios"].as_array().unwrap().clone()
}

/// The report on a kernel.
fn report(output: &Output) -> Value {
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    report["kernels"][0].clone()
}

/// A report's scenarios are those of tests/expected/KERNEL.txt, each with its verdict and with as many
/// observations. With MOAT_TEST_BLESS=1 in the environment that file is written instead.
#[track_caller]
pub fn assert_as_listed(kernel: &str, output: &Output) {
    let listed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/expected");
    let listed = listed.join(kernel).with_added_extension("txt");
    let lines: Vec<_> = scenarios(output).iter().map(line).collect();
    if std::env::var_os("MOAT_TEST_BLESS").is_some() {
        fs::write(&listed, lines.concat()).unwrap();
    }
    let expected = fs::read_to_string(&listed).unwrap_or_default();
    let expected: BTreeSet<_> = expected.split_inclusive('\n').collect();
    let actual: BTreeSet<_> = lines.iter().map(String::as_str).collect();
    let missing = expected.difference(&actual).map(|line| format!("- {line}"));
    let unexpected = actual.difference(&expected).map(|line| format!("+ {line}"));
    let difference: String = missing.chain(unexpected).collect();
    assert!(
        difference.is_empty(),
        "{kernel}: if what differs from {} is wanted, write it with MOAT_TEST_BLESS=1\n{difference}",
        listed.display()
    );
}

/// The result of a scenario: `P1 passed, 14 observations`.
fn line(scenario: &Value) -> String {
    let (id, verdict) = (scenario["id"].as_str().unwrap(), scenario["verdict"].as_str().unwrap());
    let observations = scenario["observations"].as_array().unwrap();
    let made = observations.iter().filter(|it| it["judgement"]["kind"] != "unasked").count();
    format!("{id} {verdict}, {made} observations\n")
}

/// Of these scenarios exactly `failing` fail on a monitor, and all hold when the observations are judged with
/// `--expect-without lacks`.
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

/// Judges a report again, as one of a kernel that lacks something.
fn judge(report: &Output, lacks: &str) -> Output {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&report.stdout).unwrap();
    Command::new(env!("CARGO_BIN_EXE_moat"))
        .args(["check", "--json", "--expect-without", lacks, "--judge"])
        .arg(file.path())
        .output()
        .unwrap()
}
