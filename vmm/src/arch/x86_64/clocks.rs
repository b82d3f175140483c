//! The clocks and timers of a machine, stopped while it is paused.
//!
//! | what                          | while the machine is paused                                       |
//! |-------------------------------|-------------------------------------------------------------------|
//! | time-stamp counters           | stand still, by KVM_VCPU_TSC_OFFSET (Linux 5.16); else they run on |
//! | kvmclock                      | stands still, by KVM_SET_CLOCK                                    |
//! | timers of the local APICs     | stand still: they expire later by the length of the pause         |
//! | the PIT                       | restarts its count when the machine is resumed                    |
//!
//! KVM's timers run on during a pause. One that expires meanwhile is set again, so that its interrupt is not
//! early by the guest's clocks. The PIT may interrupt once too early, and ticks that it had still to catch up
//! are dropped. QEMU stops kvmclock and the PIT only, so that a guest whose clock source is the TSC sees time
//! jump. Guests here see no jump, whichever clock source they use.

use std::arch::x86_64::_rdtsc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_clock_data, kvm_device_attr, kvm_msr_entry,
    kvm_pit_state2,
};
use kvm_ioctls::{DeviceFd, VcpuFd, VmFd};

use crate::kvm::VcpuError;

/// IA32_TSC_DEADLINE: when the local APIC's timer expires in TSC-deadline mode; otherwise 0.
const TSC_DEADLINE: u32 = 0x6e0;
/// Offset of the current count in the local APIC's registers (Intel SDM, volume 3, table 12-1).
const CURRENT_COUNT: usize = 0x390;

/// The clocks of a machine.
pub struct Clocks {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuClock>,
}

/// The state of the clocks when their machine was paused.
pub struct StoppedClocks {
    host_tsc: u64,
    kvmclock_ns: u64,
    pit: kvm_pit_state2,
    vcpus: Vec<StoppedVcpuClock>,
}

/// A vCPU's own clock and timer, accessed through duplicates of the vCPU's descriptor.
struct VcpuClock {
    vcpu: VcpuFd,
    attributes: DeviceFd,
}

struct StoppedVcpuClock {
    /// The offset of the guest's TSC from the host's. None if KVM cannot report it.
    tsc_offset: Option<u64>,
    tsc_deadline: u64,
    current_count: u32,
}

impl Clocks {
    /// The clocks of `vm`, whose vCPUs are `vcpus`.
    pub fn new<'a>(
        vm: Arc<VmFd>,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<Self, VcpuError> {
        let vcpus = vcpus.map(|vcpu| VcpuClock::new(&vm, vcpu)).collect::<Result<_, _>>()?;
        Ok(Self { vm, vcpus })
    }

    /// Stops them. No vCPU may be in KVM_RUN until [`Self::start`].
    pub fn stop(&self) -> Result<StoppedClocks, VcpuError> {
        Ok(StoppedClocks {
            vcpus: self.vcpus.iter().map(VcpuClock::stop).collect::<Result<_, _>>()?,
            pit: self.vm.get_pit2().map_err(VcpuError::ioctl("KVM_GET_PIT2"))?,
            kvmclock_ns: self.vm.get_clock().map_err(VcpuError::ioctl("KVM_GET_CLOCK"))?.clock,
            host_tsc: host_tsc(),
        })
    }

    /// Restarts them from where they were stopped.
    pub fn start(&self, stopped: &StoppedClocks) -> Result<(), VcpuError> {
        self.vm.set_pit2(&stopped.pit).map_err(VcpuError::ioctl("KVM_SET_PIT2"))?;
        // Without flags, so that KVM does not add the time that has passed.
        let kvmclock = kvm_clock_data { clock: stopped.kvmclock_ns, ..Default::default() };
        self.vm.set_clock(&kvmclock).map_err(VcpuError::ioctl("KVM_SET_CLOCK"))?;
        // The same value for all vCPUs, so that their counters still agree.
        let passed = host_tsc().wrapping_sub(stopped.host_tsc);
        let mut clocks = self.vcpus.iter().zip(&stopped.vcpus);
        clocks.try_for_each(|(clock, stopped)| clock.start(stopped, passed))
    }
}

impl VcpuClock {
    fn new(vm: &VmFd, vcpu: &VcpuFd) -> Result<Self, VcpuError> {
        // SAFETY: the vCPU's descriptor is open as long as `vcpu` lives.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let duplicate =
            || fd.try_clone_to_owned().map(IntoRawFd::into_raw_fd).map_err(VcpuError::Descriptor);
        // SAFETY: the duplicate is a descriptor of a vCPU of `vm`, and is owned here only. The `VcpuFd` made of
        // it does not access the page that the vCPU shares with KVM, which is for the thread that runs it.
        let ours = unsafe { vm.create_vcpu_from_rawfd(duplicate()?) };
        let ours = ours.map_err(VcpuError::ioctl("mmap of a vCPU"))?;
        // SAFETY: the duplicate is owned here only; a vCPU's descriptor supports the ioctls of attributes, as
        // a device's does.
        let attributes = unsafe { DeviceFd::from_raw_fd(duplicate()?) };
        Ok(Self { vcpu: ours, attributes })
    }

    fn stop(&self) -> Result<StoppedVcpuClock, VcpuError> {
        let mut deadline = Msrs::from_entries(&[tsc_deadline(0)]).expect("one MSR is not too many");
        let count = self.vcpu.get_msrs(&mut deadline).map_err(VcpuError::ioctl("KVM_GET_MSRS"))?;
        let apic = self.vcpu.get_lapic().map_err(VcpuError::ioctl("KVM_GET_LAPIC"))?;
        Ok(StoppedVcpuClock {
            tsc_offset: self.tsc_offset()?,
            tsc_deadline: deadline.as_slice()[..count].first().map_or(0, |msr| msr.data),
            current_count: u32::from_le_bytes(current_count(&apic.regs)),
        })
    }

    /// `passed` is how far the host's TSC has advanced since the stop.
    fn start(&self, stopped: &StoppedVcpuClock, passed: u64) -> Result<(), VcpuError> {
        if let Some(offset) = stopped.tsc_offset {
            self.set_tsc_offset(offset.wrapping_sub(passed))?;
        }
        if stopped.current_count != 0 {
            // The current state, since interrupts may have arrived meanwhile.
            let mut apic = self.vcpu.get_lapic().map_err(VcpuError::ioctl("KVM_GET_LAPIC"))?;
            let count = stopped.current_count.to_le_bytes().map(|byte| byte as _);
            apic.regs[CURRENT_COUNT..][..4].copy_from_slice(&count);
            self.vcpu.set_lapic(&apic).map_err(VcpuError::ioctl("KVM_SET_LAPIC"))?;
        }
        if stopped.tsc_deadline != 0 {
            let deadline = Msrs::from_entries(&[tsc_deadline(stopped.tsc_deadline)]);
            let deadline = deadline.expect("one MSR is not too many");
            match self.vcpu.set_msrs(&deadline).map_err(VcpuError::ioctl("KVM_SET_MSRS"))? {
                1 => {}
                _ => return Err(VcpuError::MsrRefused(TSC_DEADLINE)),
            }
        }
        // Tells the guest's watchdogs about the pause. EINVAL: the guest does not use kvmclock.
        match self.vcpu.kvmclock_ctrl() {
            Err(error) if error.errno() != libc::EINVAL => {
                Err(VcpuError::ioctl("KVM_KVMCLOCK_CTRL")(error))
            }
            _ => Ok(()),
        }
    }

    fn tsc_offset(&self) -> Result<Option<u64>, VcpuError> {
        if self.attributes.has_device_attr(&tsc_offset_attribute(std::ptr::null())).is_err() {
            return Ok(None);
        }
        let mut offset = 0_u64;
        let mut attribute = tsc_offset_attribute(&raw mut offset);
        // SAFETY: KVM writes the 8 bytes that this attribute has, which are ours.
        unsafe { self.attributes.get_device_attr(&mut attribute) }
            .map_err(VcpuError::ioctl("KVM_GET_DEVICE_ATTR"))?;
        Ok(Some(offset))
    }

    fn set_tsc_offset(&self, offset: u64) -> Result<(), VcpuError> {
        self.attributes
            .set_device_attr(&tsc_offset_attribute(&raw const offset))
            .map_err(VcpuError::ioctl("KVM_SET_DEVICE_ATTR"))
    }
}

fn tsc_offset_attribute(offset: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: offset.expose_provenance() as u64,
        flags: 0,
    }
}

fn tsc_deadline(data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index: TSC_DEADLINE, data, ..Default::default() }
}

fn current_count(registers: &[std::ffi::c_char]) -> [u8; 4] {
    std::array::from_fn(|byte| registers[CURRENT_COUNT + byte] as u8)
}

/// The host's TSC. Guests' TSCs have an offset from it and the same rate.
fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets processes use it unless they
    // have asked for the opposite.
    unsafe { _rdtsc() }
}
