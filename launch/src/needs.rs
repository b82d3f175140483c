//! What has to be in a kernel so that it can run a program.

use testvm::kernel::{GuestKernel, KernelError};
use thiserror::Error;
use vmm::{MachineSpec, VirtioTransport};

use crate::root::Root;

/// Why a kernel cannot run a program.
#[derive(Debug, Error)]
pub enum NeedsError {
    /// It was built without something.
    #[error(
        "Linux {release} lacks {} for this: turn on what is missing in its configuration, built in or as modules{}", .symbols.join(", "), if *.only_shares { ". Without, a program can run on files that --file names" } else { "" }
    )]
    Lacking {
        /// The kernel.
        release: String,
        /// What to turn on.
        symbols: Vec<&'static str>,
        /// Whether that is for sharing files only.
        only_shares: bool,
    },
    /// Its modules are not known.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A module that is needed, and the symbol that turns it on.
type Need = (&'static str, &'static str);

/// What is needed of virtio-fs.
const SHARES: [Need; 2] = [("fuse", "FUSE_FS"), ("virtiofs", "VIRTIO_FS")];
/// And for a layer over a directory that the guest may not change.
const LAYER: Need = ("overlay", "OVERLAY_FS");

/// The modules that are needed, in the order in which to load them.
pub fn modules(
    kernel: &GuestKernel,
    spec: &MachineSpec,
    root: &Root,
    has_shares: bool,
) -> Result<Vec<&'static str>, NeedsError> {
    let bus = match spec.transport {
        VirtioTransport::Mmio => ("virtio_mmio", "VIRTIO_MMIO"),
        VirtioTransport::Pci => ("virtio_pci", "VIRTIO_PCI"),
    };
    // Devices behind an IOMMU have to wait for its driver.
    let iommu = spec.iommu.map(|_| ("virtio_iommu", "VIRTIO_IOMMU"));
    let for_streams: Vec<_> =
        [bus].into_iter().chain(iommu).chain([("virtio_console", "VIRTIO_CONSOLE")]).collect();
    let has_layer = matches!(root, Root::Directory(_));
    let for_shares: Vec<_> = SHARES
        .into_iter()
        .filter(|_| has_layer || has_shares)
        .chain(has_layer.then_some(LAYER))
        .collect();
    let symbols = lacking(kernel, &for_streams)?;
    let only_shares = symbols.is_empty();
    let symbols = [symbols, lacking(kernel, &for_shares)?].concat();
    if !symbols.is_empty() {
        let release = kernel.release().to_owned();
        return Err(NeedsError::Lacking { release, symbols, only_shares });
    }
    Ok(for_streams.into_iter().chain(for_shares).map(|(module, _)| module).collect())
}

/// The symbols of what a kernel does not have.
fn lacking(kernel: &GuestKernel, needs: &[Need]) -> Result<Vec<&'static str>, KernelError> {
    let names: Vec<_> = needs.iter().map(|(module, _)| *module).collect();
    let lacking = kernel.lacking(&names)?;
    let is_lacking = |need: &&Need| lacking.contains(&need.0);
    Ok(needs.iter().filter(is_lacking).map(|(_, symbol)| *symbol).collect())
}
