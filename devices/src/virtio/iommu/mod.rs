//! The IOMMU device, virtio-iommu (virtio 1.3, section 5.13).
//!
//! Read in this order: [`wire`] is what the driver sees; [`mappings`] is one address space;
//! [`translations`] is who uses which, and answers the DMA of all other devices; [`fault`] is what
//! it refused; [`device`] lets the driver change it.
//!
//! An endpoint is a device by the number that its requests carry ([`Requester`]): a PCI function's
//! requester ID, behind a bridge to conventional PCI that of the bridge, or what the machine says.
//! The device's own queues are not translated.
//!
//! Requests are carried out by the thread that does all devices' work. So whatever a request takes
//! away, no access to it is under way when the driver learns that it is gone, and nothing needs to
//! be invalidated. A reset of the device and a write to `bypass` come from a vCPU, and are in force
//! from the next access on.
//!
//! Message-signalled interrupts are no DMA here: they go from a device to the machine's interrupt
//! controller, and no domain has a say in them. PROBE tells the driver so, as on all x86 machines,
//! by the window of addresses that is not to be mapped.
//!
//! [`Requester`]: crate::dma::Requester

pub mod device;
mod fault;
mod mappings;
mod translations;
pub mod wire;

#[cfg(test)]
mod endpoint_test;
#[cfg(test)]
mod fault_test;
#[cfg(test)]
mod request_test;
#[cfg(test)]
pub(crate) mod test_machine;

pub use device::{VirtioIommu, VirtioIommuConfig};
pub use fault::{Fault, FaultReason, ReportCounters};
pub use translations::{EndpointStatus, IommuStatus, Translations};
