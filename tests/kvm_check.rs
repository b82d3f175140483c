//! `moat check` on kernels that protect: the checks hold. Of each release of Debian's one kernel: with
//! its other one, generic or cloud, they differ in which checks are skipped.
//!
//! What comes of each check is in `tests/expected`, a file a kernel. To write them anew:
//! `MOAT_TEST_BLESS=1 scripts/test kvm_check`.

mod support;

use support::check::{assert_as_listed, check, with_verdict};

/// All holds but what is listed as skipped, or as a gap that is known.
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
