//! CPUID of vCPUs: the host's features, and the machine's own topology.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::cpuid_features::clear_features_without_dependency;
use super::machine_check::Vendor;
use crate::kvm::VcpuError;

const LEAF_VENDOR: u32 = 0x0;
const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHE: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_RAS: u32 = 0x8000_0007;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

/// CPUID that all vCPUs of a machine share, apart from their APIC ids.
#[derive(Clone)]
pub struct CpuidTemplate {
    supported: CpuId,
    vcpus: u32,
    tsc_deadline: bool,
}

impl CpuidTemplate {
    /// All features that `kvm` supports, except those that depend on a missing one, for a machine of `vcpus`
    /// vCPUs: one socket of single-thread cores.
    pub fn new(kvm: &Kvm, vcpus: u32) -> Result<Self, VcpuError> {
        let mut supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(VcpuError::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        clear_features_without_dependency(supported.as_mut_slice());
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { supported, vcpus, tsc_deadline })
    }

    /// The vendor of the processors.
    pub fn vendor(&self) -> Vendor {
        const AMD: u32 = u32::from_le_bytes(*b"Auth");
        const HYGON: u32 = u32::from_le_bytes(*b"Hygo");
        match self.leaf(LEAF_VENDOR).map(|entry| entry.ebx) {
            Some(AMD | HYGON) => Vendor::Amd,
            _ => Vendor::Intel,
        }
    }

    /// Whether the processors have VMX.
    pub fn has_vmx(&self) -> bool {
        const VMX: u32 = 1 << 5;
        self.leaf(LEAF_FEATURES).is_some_and(|entry| entry.ecx & VMX != 0)
    }

    /// Adds the features by which AMD's processors announce that a kernel can recover from a machine check in
    /// a process.
    pub fn add_machine_check_recovery(&mut self) {
        const OVERFLOW_RECOVERY: u32 = 1 << 0;
        const SOFTWARE_UNCORRECTABLE_RECOVERY: u32 = 1 << 1;
        if self.vendor() == Vendor::Amd {
            let entries = self.supported.as_mut_slice().iter_mut();
            entries
                .filter(|entry| entry.function == LEAF_AMD_RAS)
                .for_each(|entry| entry.ebx |= OVERFLOW_RECOVERY | SOFTWARE_UNCORRECTABLE_RECOVERY);
        }
    }

    /// How many bits a guest physical address has.
    pub fn physical_address_bits(&self) -> u32 {
        const WITHOUT_THE_LEAF: u32 = 36;
        self.leaf(LEAF_AMD_SIZES).map_or(WITHOUT_THE_LEAF, |entry| entry.eax & 0xff)
    }

    fn leaf(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.supported.as_slice().iter().find(|entry| entry.function == function)
    }

    /// CPUID of vCPU `apic_id`.
    pub fn for_vcpu(&self, apic_id: u32) -> Result<CpuId, VcpuError> {
        let mut entries: Vec<kvm_cpuid_entry2> = self
            .supported
            .as_slice()
            .iter()
            .copied()
            .filter(|entry| !matches!(entry.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2))
            .collect();
        for entry in &mut entries {
            self.adapt(entry, apic_id);
        }
        // A processor without leaf 0xb does not get one: Linux would still read leaf 0x1.
        if entries.iter().any(|entry| entry.function == 0 && entry.eax >= LEAF_TOPOLOGY) {
            entries.extend(self.topology(apic_id));
        }
        CpuId::from_entries(&entries).map_err(|_| VcpuError::TooManyCpuidEntries(entries.len()))
    }

    /// Number of bits of an APIC id for the core number.
    fn core_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    fn adapt(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        const HYPERVISOR: u32 = 1 << 31;
        const TSC_DEADLINE: u32 = 1 << 24;
        const MULTIPLE_LOGICAL_PROCESSORS: u32 = 1 << 28;
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx |= HYPERVISOR;
                if self.tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                let logical = (1 << self.core_bits()).min(255);
                entry.ebx = entry.ebx & 0xffff | apic_id << 24 | logical << 16;
                if self.vcpus > 1 {
                    entry.edx |= MULTIPLE_LOGICAL_PROCESSORS;
                }
            }
            // Bits 31-26: core ids in the package - 1. Bits 25-14: logical processors that share
            // the cache - 1; level 3 is shared by all.
            LEAF_CACHE if entry.eax & 0x1f != 0 => {
                let cores = ((1_u32 << self.core_bits()) - 1).min(0x3f);
                let level = entry.eax >> 5 & 0x7;
                let sharing = if level >= 3 { (1 << self.core_bits()) - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
            }
            // Bits 15-12: size of the core id. Bits 7-0: cores - 1.
            LEAF_AMD_SIZES => {
                entry.ecx = entry.ecx & !0xf0ff | self.core_bits() << 12 | (self.vcpus - 1);
            }
            // One thread a core, one node.
            LEAF_AMD_TOPOLOGY => {
                entry.eax = apic_id;
                entry.ebx = apic_id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    /// Leaf 0xb: level 0 are threads, one a core; level 1 are cores.
    fn topology(&self, apic_id: u32) -> [kvm_cpuid_entry2; 3] {
        const SIGNIFICANT_INDEX: u32 = 1;
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
            function: LEAF_TOPOLOGY,
            index,
            flags: SIGNIFICANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: kind << 8 | index,
            edx: apic_id,
            ..Default::default()
        };
        [level(0, 0, 1, THREAD), level(1, self.core_bits(), self.vcpus, CORE), level(2, 0, 0, 0)]
    }
}
