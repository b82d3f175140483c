//! A Linux guest with the agent in it, on a machine of moat's in this process.

use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use testvm::kernel::GuestKernel;
use testvm::vm::{Trouble, Vm, VmConfig, Vmm};
use vmm::{Ending, MachineControl};

/// Emulated hosts need 10 seconds; much more is a hang.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A kernel that scripts/guest-kernel has made.
pub fn kernel(name: &str) -> GuestKernel {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels");
    GuestKernel::open(&kernels.join(name))
        .unwrap_or_else(|error| panic!("{error}; run `scripts/guest-kernel path {name}`"))
}

/// A machine of moat's that boots a kernel with these modules in its initramfs.
pub fn machine(kernel: &GuestKernel, modules: &[&str]) -> VmConfig {
    VmConfig::linux(Vmm::Moat, kernel, modules).unwrap()
}

/// Whether KVM runs in an emulated host. There a guest may be lost, the likelier the more vCPUs it
/// has, although QEMU emulates all CPUs on one (`kvm-host/`).
pub fn emulated() -> bool {
    std::env::var_os("MOAT_KVM_HOST").is_some_and(|host| host == "emulated")
}

/// As many vCPUs as a long test may have: `wanted`, or 1 where more would be lost.
pub fn lasting_vcpus(wanted: u32) -> u32 {
    if emulated() { 1 } else { wanted }
}

/// A booted guest. What it has printed is shown when the test fails.
pub struct Linux {
    vm: Vm,
    pub control: MachineControl,
}

impl Deref for Linux {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.vm.console().as_str());
        }
    }
}

impl Linux {
    /// Boots. If an emulated host loses a guest of several vCPUs, prints that and boots again.
    pub fn boot(config: &VmConfig) -> Self {
        let attempts = if emulated() && config.vcpus > 1 { 3 } else { 1 };
        for attempt in 1..attempts {
            match Self::try_boot(config) {
                Ok(linux) => return linux,
                Err(error) => eprintln!(
                    "attempt {attempt}: the emulated host lost a guest of {} vCPUs: {error}",
                    config.vcpus
                ),
            }
        }
        Self::try_boot(config).unwrap_or_else(|error| panic!("{error}\n{}", error.console))
    }

    fn try_boot(config: &VmConfig) -> Result<Self, Box<Trouble>> {
        let vm = Vm::boot(config)?;
        let control = vm.control().expect("a machine of moat's").clone();
        Ok(Self { vm, control })
    }

    /// Has the guest reboot, on a machine that starts again.
    pub fn reboot(mut self) -> Self {
        self.vm.guest.reboot().unwrap();
        self.vm.guest.wait_to_restart(TIMEOUT).unwrap();
        self
    }

    /// Waits for the machine's end.
    pub fn ending(&self) -> Ending {
        self.vm.wait_for_end(TIMEOUT).expect("the machine ends")
    }

    /// Waits until device `index` has plugged what is requested.
    pub fn wait_until_converged(&self, index: usize) {
        self.wait_until("it has plugged what is requested", || {
            let device = &self.control.status().unwrap().memory_devices[index];
            device.plugged == device.requested
        });
    }

    /// Polls until a state is reached.
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        self.vm.wait_until(what, || Ok(is_so())).unwrap_or_else(|error| {
            panic!("{error}: {:#?}", self.control.status().unwrap());
        });
    }
}
