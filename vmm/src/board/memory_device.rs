//! A virtio-mem device as part of a machine: the device, its transport, its memory, and the record of
//! accesses to its unplugged blocks.

use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};

use devices::dma::Leases;
use devices::virtio::mem::{
    BlockBackend, BlockIndex, Region, RegionError, RequestCounters, ResizeError, UnpluggedAccess,
    VirtioMem, VirtioMemConfig,
};
use devices::virtio::transport::Transport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

use crate::exit::{Ending, EndingCell};
use crate::memory::MemoryError;
use crate::memory::backing::KeptFile;
use crate::memory::busy::BusyBackend;
use crate::memory::host::{HostMemory, HostMemoryConfig, HostWork};
use crate::memory::one_slot::OneSlot;
use crate::memory::reachable::ReachableBlocks;
use crate::memory::slots::{MemorySlots, SlotError};
use crate::memory::strict::StrictBlocks;
use crate::quiesce::VcpuGate;
use crate::size::Size;
use crate::violations::refusals::{Refusals, RefusedDevice};
use crate::violations::{
    Accessor, Consequence, GuestAccess, Offender, Operation, Target, ViolationCounters,
    ViolationLog, ViolationPolicy,
};

/// Whether unplugged memory is out of the guest's reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// An unplugged block permits no access: one that is tried is reported, counted and refused.
    #[default]
    Strict,
    /// One memory slot holds the whole region, and accesses to unplugged blocks succeed unnoticed.
    Off,
}

/// A virtio-mem device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryDeviceConfig {
    /// Size of the region: the most memory that can be plugged.
    pub size: Size,
    /// Memory that the driver is asked to plug at first.
    #[serde(default)]
    pub requested: Size,
    /// Size of a block, a power of two.
    #[serde(default = "default_block_size")]
    pub block_size: Size,
    /// How its memory is allocated from the host.
    #[serde(flatten)]
    pub memory: HostMemoryConfig,
    /// The guest's NUMA node that the memory is on, as an ACPI proximity domain; node 0 if there is none given.
    #[serde(default)]
    pub node: Option<u16>,
    /// Refuse drivers that do not accept VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE.
    #[serde(default, rename = "insist_inaccessible")]
    pub insist_on_inaccessible: bool,
    /// Answer BUSY to every Nth PLUG, UNPLUG and UNPLUG_ALL request that could be carried out, to test a
    /// driver.
    #[serde(default)]
    pub busy_every: Option<NonZeroU64>,
    /// What happens after an access to an unplugged block, besides that it is refused and counted.
    #[serde(default)]
    pub on_violation: ViolationPolicy,
}

fn default_block_size() -> Size {
    Size(MemoryDeviceConfig::DEFAULT_BLOCK_SIZE)
}

impl MemoryDeviceConfig {
    /// The default block size: a huge page of x86.
    pub const DEFAULT_BLOCK_SIZE: u64 = 2 << 20;

    /// A device with a region of `size` bytes, and defaults for everything else.
    pub fn new(size: u64) -> Self {
        Self {
            size: Size(size),
            requested: Size::default(),
            block_size: default_block_size(),
            memory: HostMemoryConfig::default(),
            node: None,
            insist_on_inaccessible: false,
            busy_every: None,
            on_violation: ViolationPolicy::default(),
        }
    }
}

/// A device as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryDeviceStatus {
    /// Its name, `mem0` for the first.
    pub id: String,
    /// First guest address of its region.
    pub address: u64,
    /// Bytes of its region.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u64,
    /// Bytes from the start of the region in which blocks may be plugged.
    pub usable: u64,
    /// Bytes requested from the driver.
    pub requested: u64,
    /// Bytes plugged.
    pub plugged: u64,
    /// The driver's requests.
    pub requests: RequestCounters,
    /// Accesses to unplugged blocks.
    pub violations: ViolationCounters,
    /// The instructions that made the latest of them, latest last.
    pub offenders: Vec<Offender>,
    /// The devices whose DMA to unplugged blocks was refused, latest last.
    pub refused_devices: Vec<RefusedDevice>,
}

/// The parts of a machine that its memory devices use.
pub struct Surroundings<'a> {
    /// Whether unplugged memory is out of the guest's reach.
    pub enforcement: Enforcement,
    /// The slots that its memory is put into.
    pub slots: &'a MemorySlots,
    /// Stops vCPUs while slots are changed.
    pub gate: &'a Arc<VcpuGate>,
    /// The leases under which devices access its memory.
    pub leases: &'a Leases,
    /// Ends the machine on an error.
    pub ending: &'a Arc<EndingCell>,
}

/// A virtio-mem device of a machine.
pub struct MemoryDevice {
    id: String,
    region: Region,
    device: Arc<VirtioMem>,
    transport: OnceLock<Arc<dyn Transport>>,
    memory: HostMemory,
    /// Its blocks, with [`Enforcement::Strict`].
    strict: Option<Arc<StrictBlocks>>,
    reachable: Arc<ReachableBlocks>,
    leases: Leases,
    violations: ViolationLog,
    on_violation: ViolationPolicy,
}

/// Why a virtio-mem device cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum MemoryDeviceError {
    /// Its region is invalid.
    #[error("{id}: {source}")]
    Region {
        /// The device.
        id: String,
        /// Why.
        source: RegionError,
    },
    /// Its requested size is invalid.
    #[error("{id}: {source}")]
    Requested {
        /// The device.
        id: String,
        /// Why.
        source: ResizeError,
    },
    /// Its memory cannot be allocated.
    #[error("{id}: {source}")]
    Memory {
        /// The device.
        id: String,
        /// Why.
        source: MemoryError,
    },
}

impl MemoryDevice {
    /// A device whose region starts at `address`. Its memory is in `file` if its backing is one.
    pub fn new(
        id: String,
        address: GuestAddress,
        config: &MemoryDeviceConfig,
        file: &mut KeptFile,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, MemoryDeviceError> {
        let &Surroundings { enforcement, slots, gate, leases, ending } = surroundings;
        let page_size = config.memory.backing.page_size();
        let region = Region::new(address.0, config.size.0, config.block_size.0, page_size)
            .map_err(|source| MemoryDeviceError::Region { id: id.clone(), source })?;
        let memory_error = |source| MemoryDeviceError::Memory { id: id.clone(), source };
        let memory =
            HostMemory::map(address, config.size.0, &config.memory, file).map_err(memory_error)?;
        let cancellation = ending.cancellation();
        let memory = memory.with_work(HostWork { cancellation, ..HostWork::default() });
        let stop = Arc::clone(ending);
        let stop = move |refused: &RefusedDevice| {
            stop.set(Ending::RefusedDma(Box::new(refused.clone())));
        };
        let refusals = Refusals::new(id.clone(), config.on_violation, Box::new(stop));
        let reachable = Arc::new(ReachableBlocks::none(region, refusals));
        let strict = match enforcement {
            Enforcement::Strict => {
                let blocks = StrictBlocks::new(
                    region,
                    memory.clone(),
                    slots.clone(),
                    Arc::clone(gate),
                    leases.clone(),
                    Arc::clone(&reachable),
                    Arc::clone(ending),
                )
                .map_err(|source| MemoryError::Map { size: config.size.0, source })
                .map_err(memory_error)?;
                Some(Arc::new(blocks))
            }
            Enforcement::Off => None,
        };
        let backend: Box<dyn BlockBackend> = match &strict {
            Some(blocks) => Box::new(Arc::clone(blocks)),
            None => {
                reachable.insert(region.blocks());
                let one_slot = OneSlot::new(region, memory.clone(), slots)
                    .map_err(|error| memory_error(error.into()))?;
                Box::new(one_slot)
            }
        };
        let backend = match config.busy_every {
            Some(every) => Box::new(BusyBackend::new(backend, every)),
            None => backend,
        };
        let device = VirtioMem::new(
            VirtioMemConfig {
                region,
                requested_size: config.requested.0,
                node_id: config.node,
                insist_on_inaccessible: config.insist_on_inaccessible,
            },
            backend,
        )
        .map_err(|source| MemoryDeviceError::Requested { id: id.clone(), source })?;
        Ok(Self {
            id,
            region,
            device: Arc::new(device),
            transport: OnceLock::new(),
            memory,
            strict,
            reachable,
            leases: leases.clone(),
            violations: ViolationLog::default(),
            on_violation: config.on_violation,
        })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The device, for its transport.
    pub fn device(&self) -> Arc<VirtioMem> {
        Arc::clone(&self.device)
    }

    /// The memory behind its region.
    pub fn memory(&self) -> &HostMemory {
        &self.memory
    }

    /// The blocks that devices can reach.
    pub fn reachable(&self) -> Arc<ReachableBlocks> {
        Arc::clone(&self.reachable)
    }

    /// Sets the transport through which its driver is reached. Only the first call counts.
    pub fn attach(&self, transport: Arc<dyn Transport>) {
        self.transport.get_or_init(|| transport);
    }

    /// Asks the driver to plug or unplug until `bytes` are plugged.
    pub fn resize(&self, bytes: u64) -> Result<(), ResizeError> {
        let mut result = Ok(false);
        let mut change = || {
            result = self.device.set_requested_size(bytes);
            matches!(result, Ok(true))
        };
        match self.transport.get() {
            Some(transport) => transport.change_config(&mut change),
            None => drop(change()),
        }
        result.map(drop)
    }

    /// Bytes requested from the driver.
    pub fn requested(&self) -> u64 {
        self.device.requested_size()
    }

    /// The device as seen from outside.
    pub fn status(&self) -> MemoryDeviceStatus {
        let device = &self.device;
        MemoryDeviceStatus {
            id: self.id.clone(),
            address: self.region.address(),
            size: self.region.size(),
            block_size: self.region.block_size(),
            usable: device.usable_region_size(),
            requested: device.requested_size(),
            plugged: device.plugged_size(),
            requests: device.counters(),
            violations: ViolationCounters {
                dma: self.reachable.refusal_count(),
                ..self.violations.counters()
            },
            offenders: self.violations.offenders(),
            refused_devices: self.reachable.refused_devices(),
        }
    }

    /// Removes its unplugged blocks from the memory slots. Returns whether any were in one.
    pub fn withdraw_unplugged(&self) -> Result<bool, SlotError> {
        self.strict.as_ref().map_or(Ok(false), |blocks| blocks.withdraw_unplugged())
    }

    /// Reads plugged memory within one page. False if it is not plugged.
    pub fn peek(&self, address: u64, data: &mut [u8]) -> bool {
        // The block cannot be unplugged while the lease is held.
        let _lease = self.leases.take();
        let offset = || MemoryRegionAddress(address - self.region.address());
        self.region.block_at(address).is_some_and(|block| {
            self.reachable.contains(block.0)
                && self.memory.mapping().read_slice(data, offset()).is_ok()
        })
    }

    /// The block that a guest address lies in.
    pub fn block_at(&self, address: u64) -> Option<BlockIndex> {
        self.region.block_at(address)
    }
}

/// An access of a vCPU inside a region that no memory slot covered.
pub struct UnpluggedMemoryAccess<'a> {
    device: &'a MemoryDevice,
    block: BlockIndex,
    access: GuestAccess,
    kind: UnpluggedAccess,
}

impl<'a> UnpluggedMemoryAccess<'a> {
    /// An access to `block` of `device`.
    pub fn new(device: &'a MemoryDevice, block: BlockIndex, access: GuestAccess) -> Self {
        // Without UNPLUGGED_INACCESSIBLE a driver may read unplugged memory, and nothing else.
        let only_read = access.operation == Operation::Read;
        let kind = device.device.classify_unplugged_access(access.address, !only_read);
        Self { device, block, access, kind }
    }

    /// The byte that a read returns: 0 if the driver may read, 0xff if not.
    pub fn fill(&self) -> u8 {
        match self.kind {
            UnpluggedAccess::Permitted => 0,
            UnpluggedAccess::Violation => 0xff,
        }
    }

    /// Records the access as the device's policy demands. `accessor` finds out what made it.
    pub fn record(self, accessor: impl FnOnce(&GuestAccess) -> Accessor) -> Consequence {
        let Self { device, block, access, kind } = self;
        match kind {
            UnpluggedAccess::Permitted => {
                device.violations.count_permitted_read();
                Consequence::None
            }
            UnpluggedAccess::Violation => {
                let offset =
                    (access.address - device.region.address()) % device.region.block_size();
                let target = Target::UnpluggedBlock { block: block.0, offset };
                device.violations.record(device.on_violation, &device.id, access, target, accessor)
            }
        }
    }
}
