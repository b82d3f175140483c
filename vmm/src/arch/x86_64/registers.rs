//! The initial state of a vCPU.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestMemoryMmap};

use crate::arch::x86_64::boot::{Entry, EntryMode};
use crate::arch::x86_64::layout::{BOOT_GDT, BOOT_PAGE_TABLES, BOOT_STACK};
use crate::kvm::VcpuError;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Memory that firmware declares as uncached in the variable MTRRs (Intel SDM, volume 3, section 12.11.2.3).
#[derive(Debug, Clone, Default)]
pub struct UncachedMemory {
    /// First addresses and sizes. Each size is a power of two, and each range aligned to its own.
    pub ranges: Vec<(u64, u64)>,
    /// Number of bits of a physical address.
    pub physical_address_bits: u32,
}

/// Sets the MSRs, FPU and local APIC of a vCPU; with `entry`, of the boot vCPU, also its registers.
pub fn set_up(
    vcpu: &VcpuFd,
    memory: &GuestMemoryMmap,
    uncached: &UncachedMemory,
    entry: Option<&Entry>,
) -> Result<(), VcpuError> {
    set_msrs(vcpu, uncached)?;
    set_fpu(vcpu)?;
    set_local_apic(vcpu)?;
    if let Some(entry) = entry {
        set_entry(vcpu, memory, entry)?;
    }
    Ok(())
}

/// Declares all memory except `uncached` as cached, as firmware does. Otherwise Linux would map devices'
/// memory as cached for /dev/mem, and then refuse to let a driver map it in another way.
fn set_msrs(vcpu: &VcpuFd, uncached: &UncachedMemory) -> Result<(), VcpuError> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRING: u64 = 1 << 0;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE: u64 = 1 << 11;
    const WRITE_BACK: u64 = 6;
    const UNCACHED: u64 = 0;
    const MTRR_PHYS_BASE_0: u32 = 0x200;
    const MTRR_PHYS_MASK_VALID: u64 = 1 << 11;
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let mut msrs =
        vec![msr(IA32_MISC_ENABLE, FAST_STRING), msr(MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK)];
    for (base, (start, size)) in (MTRR_PHYS_BASE_0..).step_by(2).zip(&uncached.ranges) {
        let mask = (1 << uncached.physical_address_bits) - size;
        msrs.push(msr(base, start | UNCACHED));
        msrs.push(msr(base + 1, mask | MTRR_PHYS_MASK_VALID));
    }
    let count = msrs.len();
    let msrs = Msrs::from_entries(&msrs).expect("a few MSRs are not too many");
    match vcpu.set_msrs(&msrs).map_err(VcpuError::ioctl("KVM_SET_MSRS"))? {
        set if set == count => Ok(()),
        set => Err(VcpuError::MsrRefused(msrs.as_slice()[set].index)),
    }
}

fn set_fpu(vcpu: &VcpuFd) -> Result<(), VcpuError> {
    // As after FNINIT, and MXCSR as after reset.
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(VcpuError::ioctl("KVM_SET_FPU"))
}

/// Sets LINT0 to the PIC's interrupts and LINT1 to NMIs, as firmware does.
fn set_local_apic(vcpu: &VcpuFd) -> Result<(), VcpuError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY_MODE: u32 = 0x700;
    const NMI: u32 = 0x400;
    const EXT_INT: u32 = 0x700;
    let mut state = vcpu.get_lapic().map_err(VcpuError::ioctl("KVM_GET_LAPIC"))?;
    for (register, mode) in [(LVT_LINT0, EXT_INT), (LVT_LINT1, NMI)] {
        let bytes = &mut state.regs[register..register + 4];
        let old =
            u32::from_le_bytes([bytes[0] as u8, bytes[1] as u8, bytes[2] as u8, bytes[3] as u8]);
        let new = (old & !DELIVERY_MODE | mode).to_le_bytes();
        bytes.iter_mut().zip(new).for_each(|(byte, new)| *byte = new as _);
    }
    vcpu.set_lapic(&state).map_err(VcpuError::ioctl("KVM_SET_LAPIC"))
}

fn set_entry(vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: &Entry) -> Result<(), VcpuError> {
    let mut sregs = vcpu.get_sregs().map_err(VcpuError::ioctl("KVM_GET_SREGS"))?;
    let mut regs = kvm_regs { rflags: 2, rip: entry.address.0, ..Default::default() };
    match entry.mode {
        // "64-bit Boot Protocol", Documentation/arch/x86/boot.rst.
        EntryMode::Linux64 { zero_page } => {
            enter_long_mode(&mut sregs, memory)?;
            regs.rsi = zero_page.0;
            regs.rsp = BOOT_STACK.0;
            regs.rbp = BOOT_STACK.0;
        }
        // Xen's docs/misc/pvh.pandoc: 32-bit protected mode, paging off.
        EntryMode::Pvh { start_info } => {
            enter_protected_mode(&mut sregs, memory)?;
            regs.rbx = start_info.0;
        }
    }
    vcpu.set_sregs(&sregs).map_err(VcpuError::ioctl("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(VcpuError::ioctl("KVM_SET_REGS"))
}

/// Flags of a segment: type, S, DPL, P in the low byte, AVL, L, D, G in the high nibble.
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const TASK: u16 = 0x808b;

fn enter_long_mode(sregs: &mut kvm_sregs, memory: &GuestMemoryMmap) -> Result<(), VcpuError> {
    set_segments(sregs, memory, [0, 0, CODE_64, DATA, TASK])?;
    // Linux wants its own selectors: __BOOT_CS 0x10, __BOOT_DS 0x18.
    sregs.cr3 = BOOT_PAGE_TABLES.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    write_identity_map(memory)
}

fn enter_protected_mode(sregs: &mut kvm_sregs, memory: &GuestMemoryMmap) -> Result<(), VcpuError> {
    set_segments(sregs, memory, [0, 0, CODE_32, DATA, TASK])?;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    Ok(())
}

/// Loads flat segments and their GDT: null, unused, code, data, task.
fn set_segments(
    sregs: &mut kvm_sregs,
    memory: &GuestMemoryMmap,
    flags: [u16; 5],
) -> Result<(), VcpuError> {
    let descriptors = flags.map(descriptor);
    for (index, descriptor) in (0..).zip(descriptors) {
        memory.write_obj(descriptor, BOOT_GDT.unchecked_add(index * 8))?;
    }
    sregs.gdt.base = BOOT_GDT.0;
    sregs.gdt.limit = (size_of_val(&descriptors) - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    let [_, _, code, data, task] = flags;
    sregs.cs = segment(2, code);
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = segment(3, data);
    }
    sregs.tr = segment(4, task);
    Ok(())
}

/// A descriptor of base 0 and the largest limit.
fn descriptor(flags: u16) -> u64 {
    if flags == 0 { 0 } else { 0x000f_0000_0000_ffff | u64::from(flags) << 40 }
}

fn segment(index: u16, flags: u16) -> kvm_segment {
    let bit = |n: u16| (flags >> n & 1) as u8;
    kvm_segment {
        base: 0,
        limit: if bit(15) == 1 { 0xffff_ffff } else { 0xf_ffff },
        selector: index * 8,
        type_: (flags & 0xf) as u8,
        s: bit(4),
        dpl: (flags >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 0,
        padding: 0,
    }
}

/// Maps the first GiB onto itself with 2 MiB pages.
fn write_identity_map(memory: &GuestMemoryMmap) -> Result<(), VcpuError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let level4 = BOOT_PAGE_TABLES;
    let level3 = level4.unchecked_add(0x1000);
    let level2 = level3.unchecked_add(0x1000);
    memory.write_obj(level3.0 | PRESENT_WRITABLE, level4)?;
    memory.write_obj(level2.0 | PRESENT_WRITABLE, level3)?;
    for page in 0..512_u64 {
        let entry = page << 21 | LARGE | PRESENT_WRITABLE;
        memory.write_obj(entry, level2.unchecked_add(page * 8))?;
    }
    Ok(())
}
