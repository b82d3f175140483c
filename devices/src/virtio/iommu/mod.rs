//! The IOMMU device, virtio-iommu (virtio 1.3, section 5.13).
//!
//! Read in this order: [`wire`] is what the driver sees; [`mappings`] is one address space;
//! [`translations`] has the endpoints and their address spaces, and translates the DMA of all other
//! devices; [`fault`] records the accesses it refused; [`device`] carries out the driver's requests.
//!
//! An endpoint is identified by the number that the device's requests carry ([`Requester`]): a PCI
//! function's requester ID, behind a bridge to conventional PCI that of the bridge, or a number that
//! the machine assigns. The device's own queues are not translated.
//!
//! A request that takes a permission away waits for the leases that may rely on it ([`Leases`]) before
//! it is answered. So no such access is under way when the driver gets the answer, and nothing needs to
//! be invalidated. A reset of the device and a write to `bypass` come from a vCPU, which waits for the
//! leases after the exit.
//!
//! Message-signalled interrupts are not translated: they go directly from a device to the machine's
//! interrupt controller, whatever domain the device is in. PROBE reports this to the driver, as on all
//! x86 machines, by a window of addresses that must not be mapped.
//!
//! [`Leases`]: crate::dma::Leases
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
