//! `moat check` on kernels that lack a protection: the checks of that protection fail there, and no others.
//! This shows that the checks can fail.

mod support;

use support::check::assert_fails_on;

/// On moat.
#[track_caller]
fn assert_fails(kernel: &str, lacks: &str, failing: &[&str], passing: &[&str]) {
    assert_fails_on("moat", kernel, lacks, failing, passing);
}

#[test]
fn without_io_strict_devmem_nothing_is_torn_down_and_bars_are_open() {
    let failing =
        ["VM10", "VM11", "VM12", "VM13", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10"];
    assert_fails("unprotected", "io-strict-devmem", &failing, &["VM9", "P1"]);
}

#[test]
fn without_exclusive_a_bar_over_the_region_reaches_it() {
    assert_fails("without-exclusive", "exclusive-region", &["VM9"], &["VM10"]);
}

#[test]
fn linux_5_10_tears_down_mappings_of_dev_mem_only_and_has_no_exclusive_ram() {
    let failing = ["VM9", "VM10", "P2", "P4", "P6", "P7", "P10"];
    let lacks = "pci-revocation,exclusive-region";
    assert_fails("debian-5.10", lacks, &failing, &["P1", "P3", "P5", "P8", "P9"]);
}

#[test]
fn without_ownership_drivers_bind_beside_user_space() {
    let (failing, passing) =
        (["G4", "G5", "G7", "G12", "G13"], ["G1", "G2", "G3", "G6", "G8", "G11", "G14"]);
    assert_fails("without-ownership", "group-ownership", &failing, &passing);
}

#[test]
fn without_the_memory_check_vfio_reaches_bars_that_are_not_decoded() {
    let failing = ["F1", "F2", "F3", "F4", "F5", "F9", "F10", "F11", "F12", "F14", "F18"];
    let passing = ["F6", "F7", "F8", "F13", "F16"];
    assert_fails("without-memory-check", "vfio-memory-check", &failing, &passing);
}

#[test]
fn without_zap_mappings_of_bars_that_are_not_decoded_stay() {
    let failing = ["F1", "F2", "F4", "F5", "F10", "F11", "F12", "F18"];
    let passing = ["F3", "F6", "F7", "F8", "F9", "F13", "F14", "F16"];
    assert_fails("without-zap", "vfio-zap", &failing, &passing);
}
