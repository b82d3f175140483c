//! `moat doctor` where /dev/kvm cannot be used. It runs in a user and mount namespace of its own, which has
//! another /dev, so that this needs neither root nor KVM.

use std::process::Command;

/// What `moat doctor` prints in an empty /dev in which `setup`, a shell command, has made /dev/kvm or not. The
/// exit status has to be 1.
#[track_caller]
fn complaint(setup: &str) -> String {
    // Root in the namespace, but without the capabilities that would override permissions.
    let script = format!(
        "mount -t tmpfs tmpfs /dev && {setup} && \
         exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" doctor"
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(env!("CARGO_BIN_EXE_moat"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stderr, b"", "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_kvm_that_cannot_be_opened_is_unfit() {
    for (setup, message) in [
        ("true", "there is no /dev/kvm: load kvm_intel or kvm_amd, or, in a virtual machine, have"),
        (
            "touch /dev/kvm && chmod 0 /dev/kvm",
            "no permission for /dev/kvm: add yourself to its group",
        ),
        ("mkdir /dev/kvm", "cannot open /dev/kvm: Is a directory"),
    ] {
        let complaint = complaint(setup);
        assert!(complaint.starts_with(message), "{setup}: {complaint}");
    }
}

#[test]
fn a_file_that_is_not_kvm_is_unfit() {
    assert_eq!(complaint("touch /dev/kvm"), "/dev/kvm has API version -1; expected 12\n");
}
