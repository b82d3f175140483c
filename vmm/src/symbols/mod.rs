//! Names for the instructions of a guest's kernel, wherever KASLR has put it.
//!
//! Names come from a file, or else from the table that a Linux kernel has of itself in its memory.
//! Both need one function whose address is known: `entry_SYSCALL_64`, to which the MSR LSTAR points
//! (`syscall_init` in arch/x86/kernel/cpu/common.c). As long as a vCPU has nothing there, it has not
//! got so far in its boot that there were names for what it does.

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

/// The first address of the half that belongs to the kernel.
pub const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// Where names for the instructions of a guest's kernel come from.
pub struct GuestSymbols(Source);

enum Source {
    File(Arc<SymbolFile>),
    Memory { memory: GuestMemoryMmap, searches: Mutex<Searches> },
}

impl GuestSymbols {
    /// Names as `file` has them.
    pub fn from_file(file: Arc<SymbolFile>) -> Self {
        Self(Source::File(file))
    }

    /// Names as the guest's kernel has them in `memory`, its RAM.
    pub fn from_memory(memory: GuestMemoryMmap) -> Self {
        Self(Source::Memory { memory, searches: Mutex::default() })
    }

    /// What `address` is in the kernel, such as `memcpy+0x12`, on a vCPU whose LSTAR contains `lstar`;
    /// `translate` gives the guest physical address of that. None if there is no name for it.
    ///
    /// The first call may take a second; it searches the kernel for its names. The caller's thread
    /// is that of the vCPU, which is not in KVM_RUN.
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

/// Where the vCPU goes on a SYSCALL instruction. None if KVM does not tell.
pub fn lstar(vcpu: &VcpuFd) -> Option<u64> {
    const MSR_LSTAR: u32 = 0xc000_0082;
    let entry = kvm_msr_entry { index: MSR_LSTAR, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).ok()?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => Some(msrs.as_slice()[0].data),
        _ => None,
    }
}

/// Searches of a guest's memory for its kernel's names.
struct Searches {
    /// The latest one: for which LSTAR, and what came of it.
    latest: Option<(u64, Option<Arc<Symbols>>)>,
    /// How many more there may be: a guest can have one kernel after another by kexec, or pretend to.
    left: u32,
}

impl Default for Searches {
    fn default() -> Self {
        Self { latest: None, left: 8 }
    }
}

impl Searches {
    /// The names of the kernel that has set LSTAR to `lstar`, searched for if they are not known.
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
        // A vCPU that has other page tables just now gives another chance.
        let start = lstar & !PAGE_OFFSET;
        let image = kernel_image(memory, translate(start)?)?;
        self.left -= 1;
        let symbols = kallsyms::find(&image, start, lstar).map(Arc::new);
        match &symbols {
            Some(symbols) => debug!("the guest's kernel has {} functions", symbols.iter().len()),
            None => warn!(
                "no symbol table in the guest's kernel (CONFIG_KALLSYMS); --symbols can give one"
            ),
        }
        self.latest = Some((lstar, symbols.clone()));
        symbols
    }
}

const PAGE_OFFSET: u64 = 0xfff;

/// What of the kernel's image lies in `memory` from `start` on. It is contiguous there, and read-only
/// data come after code.
fn kernel_image(memory: &GuestMemoryMmap, start: GuestAddress) -> Option<Vec<u8>> {
    const LARGEST_IMAGE: u64 = 64 << 20;
    let region = memory.find_region(start)?;
    let left = region.last_addr().unchecked_offset_from(start) + 1;
    let mut image = vec![0; left.min(LARGEST_IMAGE) as usize];
    memory.read_slice(&mut image, start).ok()?;
    Some(image)
}
