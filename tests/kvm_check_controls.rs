//! `moat check` on kernels that lack a protection: its checks fail there, and no others. So the checks
//! prove something where they hold.

mod support;

use support::check::{check, with_verdict};

/// Of these scenarios exactly the first fail on moat, and all hold when one knows what the kernel
/// lacks.
#[track_caller]
fn assert_fails(kernel: &str, lacks: &str, failing: &[&str], passing: &[&str]) {
    assert_fails_on("moat", kernel, lacks, failing, passing);
}

/// Likewise, on a monitor.
#[track_caller]
fn assert_fails_on(vmm: &str, kernel: &str, lacks: &str, failing: &[&str], passing: &[&str]) {
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

#[test]
fn without_io_strict_devmem_nothing_is_torn_down_and_bars_are_open() {
    let failing =
        ["VM10", "VM11", "VM12", "VM13", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10"];
    assert_fails("unprotected", "io-strict-devmem", &failing, &["VM9", "P1"]);
}

#[test]
fn without_exclusive_a_bar_over_the_region_leads_to_it() {
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
        (["G4", "G5", "G7", "G12", "G13"], ["G1", "G2", "G3", "G6", "G8", "G14"]);
    assert_fails("without-ownership", "group-ownership", &failing, &passing);
}

#[test]
fn without_the_memory_check_vfio_reaches_bars_that_are_not_decoded() {
    let failing = ["F1", "F2", "F3", "F4", "F5", "F9", "F10", "F12", "F14", "F18"];
    let passing = ["F6", "F7", "F8", "F11", "F13", "F16"];
    assert_fails("without-memory-check", "vfio-memory-check", &failing, &passing);
}

#[test]
fn without_zap_mappings_of_bars_that_are_not_decoded_stay() {
    let failing = ["F1", "F2", "F4", "F5", "F10", "F11", "F12", "F18"];
    let passing = ["F3", "F6", "F7", "F8", "F9", "F13", "F14", "F16"];
    assert_fails("without-zap", "vfio-zap", &failing, &passing);
}

/// It has no driver of virtio-iommu.
#[test]
fn linux_5_10_ends_itself_when_a_driver_binds_beside_user_space() {
    let (failing, passing) = (["G3", "G4", "G5", "G7", "G12"], ["G1", "G2", "G6"]);
    let lacks = "group-ownership,group-claim";
    assert_fails_on("qemu-intel-iommu", "debian-5.10", lacks, &failing, &passing);
}
