//! `moat check` on kernels that protect: the checks hold. Of each release of Debian's one kernel: with
//! its other one, generic or cloud, they differ in which checks are skipped.

mod support;

use support::check::{check, with_verdict};

/// What needs an IOMMU whose driver the kernel has, or VFIO_NOIOMMU.
const IOMMU: [&str; 34] = [
    "P12", "P14", "F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F9", "F10", "F11", "F12", "F13",
    "F14", "F15", "F16", "F17", "F18", "G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G10",
    "G11", "G12", "G13", "G14",
];

/// All holds but what is skipped, and the one gap that all of them have.
#[track_caller]
fn assert_holds(kernel: &str, skipped: &[&str]) {
    let output = check(kernel, &[]);
    assert_eq!(with_verdict(&output, "failed"), [""; 0], "{kernel}");
    assert_eq!(with_verdict(&output, "skipped"), skipped, "{kernel}");
    assert_eq!(with_verdict(&output, "known_gap"), ["P13"], "{kernel}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_checks_hold_on_debian_6_1_cloud() {
    assert_holds("debian-6.1-cloud", &[["VM21"].as_slice(), &IOMMU].concat());
}

#[test]
fn the_checks_hold_on_debian_6_12() {
    assert_holds("debian-6.12", &["VM21", "F18", "G13", "G14"]);
}

#[test]
fn the_checks_hold_on_our_own_kernel() {
    assert_holds("protected", &[]);
}
