//! Random accesses of a driver to registers, rings and buffers of virtio devices.
//!
//! A memory device must have as much plugged as it reports, and after a reset every device must answer
//! again.
#![no_main]

use std::io;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use devices::dma::{DmaMemory, DmaPath, DmaRegion, FixedRequester, Leases};
use devices::virtio::VirtioDevice;
use devices::virtio::iommu::{VirtioIommu, VirtioIommuConfig};
use devices::virtio::mem::{Region, VirtioMem, VirtioMemConfig};
use devices::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;
use moat_fuzz::blocks::{BLOCK_SIZE, BLOCKS, Blocks};
use moat_fuzz::guest::{Count, mapping};
use moat_fuzz::mmio_driver::{Access, BUFFERS, MEMORY_SIZE, MmioDriver};
use virtio_driver::Buffer;
use vm_memory::GuestMemoryMmap;

/// First address of the memory device's region.
const REGION: u64 = 1 << 32;
const REGION_SIZE: u64 = BLOCKS as u64 * BLOCK_SIZE;

#[derive(Debug, Arbitrary)]
struct Input {
    device: Device,
    actions: Vec<Action>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Device {
    Entropy,
    Memory,
    Iommu,
}

#[derive(Debug, Arbitrary)]
enum Action {
    Access(Access),
    Describe { queue: bool, index: u8, address: Address, length: u16, flags: u8, next: u8 },
    Resize { blocks: u8 },
    SetBusy(bool),
    MemoryRequest { kind: u8, block: u8, blocks: u8 },
}

/// An address of a buffer.
#[derive(Debug)]
struct Address(u64);

impl<'a> Arbitrary<'a> for Address {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            1 | 2 => REGION + u.int_in_range(0..=REGION_SIZE)?,
            _ => u.arbitrary::<u16>()?.into(),
        }))
    }
}

struct Machine {
    driver: MmioDriver,
    device: Device,
    memory_device: Arc<VirtioMem>,
    blocks: Blocks,
}

impl Machine {
    /// There is always a memory device, though it may have no driver.
    fn new(device: Device) -> Self {
        let blocks = Blocks::default();
        let region = Region::new(REGION, REGION_SIZE, BLOCK_SIZE, BLOCK_SIZE);
        let config = VirtioMemConfig {
            region: region.expect("there is such a region"),
            requested_size: REGION_SIZE / 2,
            node_id: None,
            insist_on_inaccessible: false,
        };
        let memory_device = VirtioMem::new(config, Box::new(blocks.clone()));
        let memory_device = Arc::new(memory_device.expect("as many as there are"));
        let ram = mapping(0, MEMORY_SIZE);
        let region = mapping(REGION, REGION_SIZE as usize);
        let regions = vec![
            DmaRegion::fixed(Arc::clone(&ram)),
            DmaRegion::partial(region, Arc::new(blocks.clone())),
        ];
        let for_devices = DmaMemory::new(regions, Leases::default());
        let for_devices = DmaPath::direct(for_devices.expect("two regions are in order"));
        let memory = GuestMemoryMmap::from_arc_regions(vec![ram]);
        let driven: Arc<dyn VirtioDevice> = match device {
            Device::Entropy => Arc::new(Rng::new(Box::new(io::repeat(0x5a)))),
            Device::Memory => Arc::clone(&memory_device) as _,
            Device::Iommu => {
                let config = VirtioIommuConfig { endpoints: vec![0..=0xffff], bypass: true };
                let doorbell = Arc::new(Count::default());
                Arc::new(VirtioIommu::new(config, doorbell, Leases::default()))
            }
        };
        let driver = MmioDriver::new(
            driven,
            memory.expect("one region is in order"),
            for_devices.view(Arc::new(FixedRequester(0))),
        );
        Self { driver, device, memory_device, blocks }
    }

    fn memory_request(&self, kind: u8, block: u8, blocks: u8) {
        let address = REGION + BLOCK_SIZE * u64::from(block);
        let request = [kind.into(), address, blocks.into()].map(u64::to_le_bytes);
        self.driver.store(BUFFERS, request.as_flattened());
    }

    /// Sends a request that the device must answer, and checks the length of the answer.
    fn assert_works(&mut self) {
        self.driver.bring_up(0);
        let (request, answer) = match self.device {
            Device::Entropy => (0, 10),
            Device::Memory => {
                self.memory_request(3, 0, 1);
                (24, 10)
            }
            Device::Iommu => {
                let attach = [1, 1, 0, 0, 0].map(u32::to_le_bytes);
                self.driver.store(BUFFERS, attach.as_flattened());
                (20, 4)
            }
        };
        let chain = [Buffer::readable(BUFFERS, request), Buffer::writable(BUFFERS + 0x100, answer)];
        let chain = if request == 0 { &chain[1..] } else { &chain };
        self.driver.publish_chain(0, chain);
        assert_eq!(self.driver.take_used(0), Some(answer));
    }

    fn run(&mut self, action: Action) {
        let driver = &mut self.driver;
        match action {
            Action::Access(access) => driver.perform(access),
            Action::Describe { queue, index, address, length, flags, next } => {
                let buffer = Buffer { address: address.0, len: length.into(), flags: flags.into() };
                driver.describe(queue.into(), index.into(), buffer, next.into());
            }
            Action::Resize { blocks } => {
                let size = BLOCK_SIZE * (u64::from(blocks) % (BLOCKS as u64 + 1));
                let device = &self.memory_device;
                let resize = || device.set_requested_size(size).expect("as many as there are");
                driver.change_config(resize);
            }
            Action::SetBusy(is_busy) => self.blocks.set_busy(is_busy),
            Action::MemoryRequest { kind, block, blocks } => {
                self.memory_request(kind % 5, block % 40, blocks);
                let chain = [Buffer::readable(BUFFERS, 24), Buffer::writable(BUFFERS + 0x100, 10)];
                self.driver.publish_chain(0, &chain);
                self.driver.process();
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let Input { device, actions } = input;
    let mut machine = Machine::new(device);
    machine.driver.bring_up(0);
    for action in actions {
        machine.run(action);
        assert_eq!(machine.memory_device.plugged_size(), machine.blocks.plugged_size());
    }
    machine.assert_works();
});
