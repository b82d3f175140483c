//! Symbols for addresses in a guest's kernel, wherever KASLR has put it.
//!
//! They come from a file, or else from the table that a Linux kernel has in its own memory. Both need one
//! function whose address is known: `entry_SYSCALL_64`, to which the MSR LSTAR points (`syscall_init` in
//! arch/x86/kernel/cpu/common.c). Early in its boot, before LSTAR is set, nothing can be resolved.

mod file;
pub mod kallsyms;
#[cfg(test)]
mod kallsyms_encoder;
mod table;

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use log::{debug, warn};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

pub use file::{SymbolFile, SymbolFileError};
pub use table::{Symbol, Symbols, TooManySymbols};

/// The first address of the upper half of the address space, which is the kernel's.
pub const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// The symbols of a guest's kernel.
pub struct GuestSymbols(Source);

enum Source {
    File(Arc<SymbolFile>),
    Memory { memory: GuestMemoryMmap, searches: Mutex<Searches> },
}

impl GuestSymbols {
    /// Symbols from `file`.
    pub fn from_file(file: Arc<SymbolFile>) -> Self {
        Self(Source::File(file))
    }

    /// Symbols from the guest's RAM, `memory`, where its kernel has them.
    pub fn from_memory(memory: GuestMemoryMmap) -> Self {
        Self(Source::Memory { memory, searches: Mutex::default() })
    }

    /// The symbol of `address`, such as `memcpy+0x12`, on a vCPU whose LSTAR contains `lstar`. `translate`
    /// returns the guest physical address of a virtual one. None if `address` has no symbol.
    ///
    /// The first call may take a second, since it searches the kernel for its symbol table. Called by the
    /// vCPU's thread, outside of KVM_RUN.
    pub fn resolve(
        &self,
        lstar: u64,
        translate: impl FnOnce(u64) -> Option<GuestAddress>,
        address: u64,
    ) -> Option<String> {
        if address < KERNEL_HALF || lstar < KERNEL_HALF {
            return None;
        }
        match &self.0 {
            Source::File(file) => file.resolve(lstar, address).map(|symbol| symbol.to_string()),
            Source::Memory { memory, searches } => {
                let mut searches = searches.lock().unwrap_or_else(PoisonError::into_inner);
                let symbols = searches.symbols(memory, lstar, translate)?;
                drop(searches);
                symbols.resolve(address).map(|symbol| symbol.to_string())
            }
        }
    }
}

/// The target of the vCPU's SYSCALL instruction. None if KVM cannot report it.
pub fn lstar(vcpu: &VcpuFd) -> Option<u64> {
    const MSR_LSTAR: u32 = 0xc000_0082;
    let entry = kvm_msr_entry { index: MSR_LSTAR, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).ok()?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => Some(msrs.as_slice()[0].data),
        _ => None,
    }
}

/// Searches of a guest's memory for its kernel's symbols.
struct Searches {
    /// The LSTAR and the result of the latest one.
    latest: Option<(u64, Option<Arc<Symbols>>)>,
    /// How many more are allowed: a guest may start other kernels by kexec, or pretend to.
    left: u32,
}

impl Default for Searches {
    fn default() -> Self {
        Self { latest: None, left: 8 }
    }
}

impl Searches {
    /// The symbols of the kernel that has set LSTAR to `lstar`, searched for if they are not known yet.
    fn symbols(
        &mut self,
        memory: &GuestMemoryMmap,
        lstar: u64,
        translate: impl FnOnce(u64) -> Option<GuestAddress>,
    ) -> Option<Arc<Symbols>> {
        match &self.latest {
            Some((known, symbols)) if *known == lstar => return symbols.clone(),
            _ if self.left == 0 => return None,
            _ => {}
        }
        // If this vCPU's page tables do not map the kernel, a later call may succeed.
        let start = lstar & !PAGE_OFFSET;
        let image = kernel_image(memory, translate(start)?)?;
        self.left -= 1;
        let symbols = kallsyms::find(&image, start, lstar).map(Arc::new);
        match &symbols {
            Some(symbols) => debug!("the guest's kernel has {} functions", symbols.iter().len()),
            None => warn!(
                "the guest's kernel has no symbol table (CONFIG_KALLSYMS); give one with --symbols"
            ),
        }
        self.latest = Some((lstar, symbols.clone()));
        symbols
    }
}

const PAGE_OFFSET: u64 = 0xfff;

/// The part of the kernel's image from `start` on. The image is contiguous in `memory`, and read-only data
/// follow code.
fn kernel_image(memory: &GuestMemoryMmap, start: GuestAddress) -> Option<Vec<u8>> {
    const LARGEST_IMAGE: u64 = 64 << 20;
    let region = memory.find_region(start)?;
    let left = region.last_addr().unchecked_offset_from(start) + 1;
    let mut image = vec![0; left.min(LARGEST_IMAGE) as usize];
    memory.read_slice(&mut image, start).ok()?;
    Some(image)
}
