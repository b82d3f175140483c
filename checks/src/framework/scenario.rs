//! Scenarios, and the cases that they consist of.

use testvm::{
    kernel::GuestKernel,
    vm::{Vm, VmError},
};

use super::{Profile, Recorder, Requirement};

/// Something that a kernel must do, and the cases that check whether it does.
pub struct Scenario {
    /// Its name in reports and on command lines.
    pub id: &'static str,
    /// What the kernel does if it passes.
    pub title: &'static str,
    /// What a kernel, or its monitor, must have for it.
    pub requires: &'static [Requirement],
    /// How that is checked.
    pub cases: &'static [Case],
}

/// A part of a scenario.
#[derive(Clone, Copy)]
pub enum Case {
    /// In a guest, which it leaves as it found it, but for what the virtio-mem device requests.
    InGuest(Profile, fn(&Vm, &mut Recorder) -> CaseResult),
    /// In a guest, which it does not leave as it found it, and so it comes last.
    Last(Profile, fn(&Vm, &mut Recorder) -> CaseResult),
    /// In no guest: it looks at the kernel's configurations.
    OfKernel(fn(&GuestKernel, &mut Recorder) -> Result<(), VmError>),
}

/// A case starts in a guest that has not loaded virtio-mem's driver yet. It ends there, or goes on when
/// the driver has been loaded.
pub type CaseResult = Result<Option<AfterLoad>, VmError>;

/// What remains of a case once the driver has been loaded.
pub type AfterLoad = Box<dyn FnOnce(&Vm, &mut Recorder) -> Result<(), VmError>>;

/// What the case does once the driver has been loaded.
pub fn after_load(
    rest: impl FnOnce(&Vm, &mut Recorder) -> Result<(), VmError> + 'static,
) -> CaseResult {
    Ok(Some(Box::new(rest)))
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}
