//! `moat check` on kernels with all protections: the checks hold. Each release of Debian is tested with one
//! kernel, generic or cloud; with its other one, only the skipped checks differ.
//!
//! The expected verdicts are in `tests/expected`, a file per kernel. To write these files:
//! `MOAT_TEST_BLESS=1 scripts/test kvm_check`.

mod support;

use support::check::{assert_as_listed, check, with_verdict};

/// No check fails, and those that are skipped or known gaps are as listed.
#[track_caller]
fn assert_holds(kernel: &str) {
    let output = check(kernel, &[]);
    assert_eq!(with_verdict(&output, "failed"), [""; 0], "{kernel}");
    assert_as_listed(kernel, &output);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_checks_hold_on_debian_6_1_cloud() {
    assert_holds("debian-6.1-cloud");
}

#[test]
fn the_checks_hold_on_debian_6_12() {
    assert_holds("debian-6.12");
}

#[test]
fn the_checks_hold_on_our_own_kernel() {
    assert_holds("protected");
}
