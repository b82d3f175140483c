//! What `moat doctor` reports for each way in which a KVM can be unfit.

use std::sync::mpsc;

use super::*;

/// Longer than any of these programs takes.
const LONG: Duration = Duration::from_secs(60);

/// The diagnosis when KVM_RUN returns in these ways.
fn diagnose(exits: Vec<Exit>) -> Diagnosis {
    watch(LONG, |passed| step_through(exits.into_iter(), passed), || {}).into()
}

fn reports(steps: impl IntoIterator<Item = u8>) -> Vec<Exit> {
    let report = |step| Exit::from(Ok(VcpuExit::IoOut(REPORT_PORT, &[step])));
    steps.into_iter().map(report).collect()
}

#[track_caller]
fn assert_unfit(diagnosis: &Diagnosis, reason: &str) {
    assert_eq!((diagnosis.usable, diagnosis.reason.as_str()), (false, reason));
}

#[test]
fn kvm_is_usable_if_every_step_works() {
    let mut exits = reports(1..=5);
    exits.insert(2, Err(kvm_ioctls::Error::new(libc::EINTR)).into());
    let reason = "this machine's KVM runs unmodified kernels".into();
    assert_eq!(diagnose(exits), Diagnosis { usable: true, reason });
}

#[test]
fn the_diagnosis_names_the_step_that_fails() {
    for (passed, step) in [
        (0, "run 64-bit kernel-mode code"),
        (1, "deliver int3 through an interrupt descriptor table"),
        (2, "execute lock cmpxchg16b"),
        (3, "save and restore state with xsave and xrstor"),
        (4, "follow a change of a page table"),
    ] {
        let wrong = diagnose(reports((1..=passed).chain([WRONG_RESULT])));
        let expected = format!(
            "this machine's KVM cannot {step} (the result was wrong), so no unmodified kernel \
             runs on it"
        );
        assert_unfit(&wrong, &expected);
    }
}

#[test]
fn the_diagnosis_quotes_an_unexpected_exit() {
    for (exit, failure) in [
        (Ok(VcpuExit::Hlt), "Hlt"),
        (Ok(VcpuExit::Shutdown), "Shutdown"),
        (Ok(VcpuExit::InternalError), "InternalError"),
        (Ok(VcpuExit::FailEntry(0x8000_0021, 0)), "FailEntry(2147483681, 0)"),
        (Ok(VcpuExit::IoOut(0x80, &[1])), "IoOut(128, [1])"),
        (Err(kvm_ioctls::Error::new(libc::EFAULT)), "Bad address (os error 14)"),
    ] {
        let expected = format!(
            "this machine's KVM cannot run 64-bit kernel-mode code ({failure}), so no unmodified \
             kernel runs on it"
        );
        assert_unfit(&diagnose(vec![exit.into()]), &expected);
    }
}

#[test]
fn a_program_that_does_not_finish_is_ended_after_the_timeout() {
    let (end, ended) = mpsc::channel();
    let program = move |passed: &AtomicUsize| {
        passed.store(Step::Breakpoint as usize, Ordering::Release);
        ended.recv().expect("the program is asked to end");
        Ok(())
    };
    // The program runs until it is asked to end, so the timeout always expires first.
    let result = watch(Duration::from_secs(1), program, || end.send(()).unwrap());
    assert_unfit(
        &result.into(),
        "this machine's KVM cannot execute lock cmpxchg16b (it did not finish within 1 s), so no \
         unmodified kernel runs on it",
    );
}

#[test]
fn a_program_whose_thread_panics_has_failed() {
    let result = watch(LONG, |_| panic!("on purpose"), || {});
    assert_unfit(
        &result.into(),
        "this machine's KVM cannot run 64-bit kernel-mode code (its thread panicked), so no unmodified \
         kernel runs on it",
    );
}

#[test]
fn the_diagnosis_names_what_kvm_refuses() {
    let error = kvm_ioctls::Error::new(libc::ENOMEM);
    let ioctl = VcpuError::ioctl("KVM_SET_SREGS")(error);
    for (unfit, reason) in [
        (
            Unfit::Refused { attempt: "create a vCPU", error },
            "/dev/kvm refuses to create a vCPU: Cannot allocate memory (os error 12)",
        ),
        (
            Unfit::State(ioctl),
            "/dev/kvm refuses a vCPU's state: KVM_SET_SREGS failed: Cannot allocate memory (os \
             error 12)",
        ),
        (KvmError::ApiVersion(11).into(), "/dev/kvm has API version 11; expected 12"),
    ] {
        assert_unfit(&Err(unfit).into(), reason);
    }
}
