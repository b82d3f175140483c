//! The files of a machine, opened once: what is at a path when a machine restarts may be another file.

use std::sync::Arc;

use super::config::MachineConfig;
use super::error::MachineError;
use crate::arch::x86_64::boot::KernelFile;
use crate::memory::backing::KeptFile;
use crate::symbols::SymbolFile;

/// The files of a machine.
pub struct Files {
    /// The kernel image.
    pub kernel: KernelFile,
    /// Where names of the kernel's functions are, if that is a file.
    pub symbols: Option<Arc<SymbolFile>>,
    /// What RAM is in.
    pub ram: KeptFile,
    /// What the memory of each memory device is in.
    pub memory_devices: Vec<KeptFile>,
}

impl Files {
    /// Opens what is read. Memory gets its files when its sizes have been checked.
    pub fn open(config: &MachineConfig) -> Result<Self, MachineError> {
        let symbols = config.symbols.as_deref().map(SymbolFile::open).transpose()?;
        Ok(Self {
            kernel: KernelFile::open(&config.kernel)?,
            symbols: symbols.map(Arc::new),
            ram: KeptFile::default(),
            memory_devices: config.memory_devices.iter().map(|_| KeptFile::default()).collect(),
        })
    }
}
