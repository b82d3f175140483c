//! A guest's accesses, and the machine parts that they need.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arbitrary::{Arbitrary, Result, Unstructured};
use devices::Signal;
use devices::dma::{DmaMemory, DmaPath, DmaRegion, DmaView, FixedRequester, Leases};
use devices::pci::{Doorbell, InterruptLine, Message, MessageSink};
use devices::platform::{PlatformControl, PlatformEvent};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// The bytes of an access: at least one, and no more than string I/O transfers at once.
#[derive(Debug, Clone)]
pub struct AccessBytes(Vec<u8>);

impl AccessBytes {
    const MAX: usize = 64;

    /// The bytes of a write.
    pub fn written(&self) -> &[u8] {
        &self.0
    }

    /// A buffer for a read of the same length.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl<'a> Arbitrary<'a> for AccessBytes {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let length = *u.choose(&[1, 2, 4, 4, 4, 8, 16, Self::MAX])?;
        let mut bytes = vec![0; length];
        u.fill_buffer(&mut bytes)?;
        Ok(Self(bytes))
    }
}

/// Counts what a device sends: signals, and messages.
#[derive(Default)]
pub struct Count(AtomicUsize);

impl Count {
    /// How many so far.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Signal for Count {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A doorbell that counts how often it rings, and records its address.
pub struct Bell {
    /// Counts rings of all doorbells together,
    rings: Arc<Count>,
    /// and of this one.
    own_rings: Count,
    address: Mutex<Option<u64>>,
}

impl Bell {
    /// A doorbell without an address, which counts in `rings` too.
    pub fn new(rings: Arc<Count>) -> Self {
        Self { rings, own_rings: Count::default(), address: Mutex::default() }
    }

    /// How often this one has rung.
    pub fn rings(&self) -> usize {
        self.own_rings.get()
    }

    /// The address that it was notified of.
    pub fn address(&self) -> Option<u64> {
        *self.address.lock().expect("nothing has panicked")
    }
}

impl Signal for Bell {
    fn signal(&self) {
        self.rings.signal();
        self.own_rings.signal();
    }
}

impl Doorbell for Bell {
    fn moved(&self, address: Option<u64>) {
        let mut place = self.address.lock().expect("nothing has panicked");
        assert_ne!(place.is_some(), address.is_some(), "from {place:x?} to {address:x?}");
        *place = address;
    }
}

impl PlatformControl for Count {
    fn request(&self, _: PlatformEvent) {
        self.signal();
    }
}

impl MessageSink for Count {
    fn send(&self, _: Message) {
        self.signal();
    }
}

/// An interrupt line that is not connected.
pub struct IdleLine;

impl InterruptLine for IdleLine {
    fn set_level(&self, _: bool) {}
}

/// Host memory for `[start, start + size)`, all zeros.
pub fn mapping(start: u64, size: usize) -> Arc<GuestRegionMmap> {
    let mapping = GuestRegionMmap::from_range(GuestAddress(start), size, None);
    Arc::new(mapping.expect("a little can be mapped"))
}

/// Guest memory.
#[derive(Clone)]
pub struct Memory {
    /// As vCPUs see it.
    pub guest: GuestMemoryMmap,
    /// As devices see it.
    pub dma: DmaMemory,
}

impl Memory {
    /// All of `[start, start + size)`.
    pub fn new(start: u64, size: usize) -> Self {
        let mapping = mapping(start, size);
        let regions = vec![DmaRegion::fixed(Arc::clone(&mapping))];
        Self {
            guest: GuestMemoryMmap::from_arc_regions(vec![mapping]).expect("one is in order"),
            dma: DmaMemory::new(regions, Leases::default()).expect("one is in order"),
        }
    }

    /// The view of a device without an IOMMU.
    pub fn view(&self) -> DmaView {
        DmaPath::direct(self.dma.clone()).view(Arc::new(FixedRequester(0)))
    }

    /// The `size` bytes from `start` on.
    pub fn contents(&self, start: u64, size: usize) -> Vec<u8> {
        contents(&self.guest, start, size)
    }
}

/// The `size` bytes of memory from `start` on.
pub fn contents(memory: &GuestMemoryMmap, start: u64, size: usize) -> Vec<u8> {
    let mut contents = vec![0; size];
    memory.read_slice(&mut contents, GuestAddress(start)).expect("it is all there");
    contents
}
