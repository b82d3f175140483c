//! `moat check` on QEMU's devices behind an IOMMU, which needs no KVM.

mod support;

use support::check::{assert_fails_on, check, with_verdict};

/// Those that need a probe are skipped.
#[test]
fn the_checks_hold_behind_the_virtio_iommu_of_qemu() {
    let passing = [
        "P14", "F1", "F2", "F3", "F4", "F5", "F6", "F8", "F9", "F12", "F13", "F14", "F15", "F16",
        "F17", "F18", "G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9", "G10", "G11", "G12",
        "G13", "G14",
    ];
    let skipped = ["F7", "F10", "F11"];
    let only = [passing.as_slice(), &skipped].concat().join(",");
    let output = check("protected", &["--vmm", "qemu", "--only", &only]);
    assert_eq!(with_verdict(&output, "passed"), passing);
    assert_eq!(with_verdict(&output, "skipped"), skipped);
    assert_eq!(output.status.code(), Some(0));
}

/// With VT-d, since it has no driver of virtio-iommu.
#[test]
fn linux_5_10_panics_when_a_driver_binds_beside_user_space_and_reaches_sleeping_functions() {
    let (failing, passing) = (["F12", "G3", "G4", "G5", "G7", "G12"], ["F1", "G1", "G2", "G6"]);
    let lacks = "vfio-power-check,group-ownership,group-claim";
    assert_fails_on("qemu-intel-iommu", "debian-5.10", lacks, &failing, &passing);
}
