//! The probe's ranges, and its status for the host.

use std::mem::offset_of;
use std::sync::{Arc, Mutex};

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::access_log::AccessLog;
use super::dma_engine::{DmaEngine, Processed};
use super::registers::{
    Control, DEVICE, LogEntry, Report, Signature, VECTORS, VENDOR, VERSION, bar0, bar4, bar5,
};
use super::{AccessCounts, DmaCounts, DmaStatus, LoggedAccess, rom};
use crate::Signal;
use crate::dma::DmaPath;
use crate::lock;
use crate::pci::{
    BarIndex, BarKind, ClassCode, Direction, FunctionBuilder, FunctionError, Identity,
    InterruptPin, IntxPin, MessageSink, Msix, MsixLayout, PciDevice, ResetKind, RootComplex,
};

/// Resets since the machine was built.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ResetCounts {
    /// Function Level Resets.
    pub function_level: u64,
    /// Hot resets.
    pub hot: u64,
    /// Resets on the way from D3hot to D0.
    pub power_management: u64,
}

/// The probe's status for the host. A reset of the function changes nothing of it but
/// [`dma_status`](Self::dma_status).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeStatus {
    /// Accesses that reached the device, by number of the BAR.
    pub accesses: [AccessCounts; 6],
    /// The last of them, oldest first.
    pub log: Vec<LoggedAccess>,
    /// Resets.
    pub resets: ResetCounts,
    /// DMA transfers.
    pub dma: DmaCounts,
    /// The state of the DMA engine.
    pub dma_status: DmaStatus,
}

/// The device. See the [module](super) for what it is for.
pub struct Probe {
    control: Control,
    scratch: [u8; bar0::SCRATCH_SIZE],
    port_scratch: [u8; 4],
    ram: Vec<u8>,
    dma: DmaEngine,
    log: AccessLog,
    resets: ResetCounts,
    msix: Arc<Msix>,
    intx: Arc<IntxPin>,
}

impl Probe {
    /// The registers by which a driver recognises the probe.
    pub const IDENTITY: Identity = Identity {
        vendor: VENDOR,
        device: DEVICE,
        revision: VERSION as u8,
        class: ClassCode { base: 0xff, sub: 0, interface: 0 },
        subsystem_vendor: VENDOR,
        subsystem: DEVICE,
    };

    /// A probe, and its function, which is to be [built](FunctionBuilder::build) with it.
    ///
    /// BAR 2 is `ram_size` bytes long, a power of two; the guest can map it if that is a page at
    /// least. `doorbell` is signalled when a DMA transfer is started. The machine then calls
    /// [`Self::process`] from a thread that does not run a vCPU.
    pub fn new(
        ram_size: u32,
        memory: &DmaPath,
        messages: Arc<dyn MessageSink>,
        doorbell: Arc<dyn Signal>,
    ) -> Result<(FunctionBuilder, Arc<Mutex<Self>>), FunctionError> {
        let mut function = FunctionBuilder::new(Self::IDENTITY);
        function.bar(BarIndex::Bar0, BarKind::Memory32, bar0::SIZE)?;
        function.bar(BarIndex::Bar2, BarKind::Memory64Prefetchable, ram_size.into())?;
        function.bar(BarIndex::Bar4, BarKind::Memory32, bar4::SIZE)?;
        function.bar(BarIndex::Bar5, BarKind::Io, bar5::SIZE)?;
        function.rom(rom::image(&Self::IDENTITY))?;
        let layout = MsixLayout {
            bar: BarIndex::Bar4,
            vectors: VECTORS,
            table: bar4::TABLE,
            pending: bar4::PENDING,
        };
        let probe = Self {
            control: Control::RESET,
            scratch: [0; bar0::SCRATCH_SIZE],
            port_scratch: [0; 4],
            ram: vec![0; ram_size as usize],
            dma: DmaEngine::new(function.state(), memory.view(function.state()), doorbell),
            log: AccessLog::default(),
            resets: ResetCounts::default(),
            msix: function.msix(layout, messages)?,
            intx: function.intx(InterruptPin::A),
        };
        Ok((function, Arc::new(Mutex::new(probe))))
    }

    /// Carries out the DMA transfer that waits, if one does: to or from memory, or `peers`' registers.
    pub fn process(probe: &Mutex<Self>, peers: &RootComplex) {
        let processed = lock(probe).dma.process();
        let vector = match processed {
            Processed::Nothing => None,
            Processed::Finished(vector) => Some(vector),
            Processed::Peer(mut transfer) => {
                let answered = transfer.run(peers);
                lock(probe).dma.finish_peer(transfer, answered)
            }
        };
        if let Some(vector) = vector {
            lock(probe).raise(vector);
        }
    }

    /// What has happened so far.
    pub fn status(&self) -> ProbeStatus {
        ProbeStatus {
            accesses: self.log.counts(),
            log: self.log.recent(),
            resets: self.resets,
            dma: self.dma.counts,
            dma_status: self.dma.status(),
        }
    }

    fn raise(&self, vector: u32) {
        if let Ok(vector) = vector.try_into() {
            self.msix.raise(vector);
        }
    }

    fn report(&self) -> Report {
        Report {
            signature: Signature::PROBE,
            dma_status: self.dma.status().code().into(),
            reserved: U32::ZERO,
            dma_completed: self.dma.counts.completed.into(),
            dma_faulted: self.dma.counts.faulted.into(),
            function_level_resets: self.resets.function_level.into(),
            hot_resets: self.resets.hot.into(),
            power_management_resets: self.resets.power_management.into(),
            logged: self.log.logged().into(),
            accesses: self.log.counts().map(Into::into),
        }
    }

    fn read_registers(&self, offset: u64, data: &mut [u8]) {
        match offset {
            bar0::REPORT..bar0::CONTROL => read(self.report().as_bytes(), offset, data),
            bar0::CONTROL..bar0::SCRATCH => {
                read(self.control.as_bytes(), offset - bar0::CONTROL, data)
            }
            bar0::SCRATCH..bar0::LOG => read(&self.scratch, offset - bar0::SCRATCH, data),
            bar0::LOG..bar0::BUFFER => {
                let offset = (offset - bar0::LOG) as usize;
                let entry = self.log.entry(offset / size_of::<LogEntry>());
                read(entry.as_bytes(), (offset % size_of::<LogEntry>()) as u64, data);
            }
            _ => read(&self.dma.buffer, offset - bar0::BUFFER, data),
        }
    }

    fn write_registers(&mut self, offset: u64, data: &[u8]) {
        match offset {
            bar0::REPORT..bar0::CONTROL => {}
            bar0::CONTROL..bar0::SCRATCH => self.write_control(offset - bar0::CONTROL, data),
            bar0::SCRATCH..bar0::LOG => write(&mut self.scratch, offset - bar0::SCRATCH, data),
            bar0::LOG..bar0::BUFFER => {}
            _ => write(&mut self.dma.buffer, offset - bar0::BUFFER, data),
        }
    }

    fn write_control(&mut self, offset: u64, data: &[u8]) {
        write(self.control.as_mut_bytes(), offset, data);
        let written = offset as usize..offset as usize + data.len();
        if written.contains(&offset_of!(Control, interrupt)) {
            self.raise(self.control.interrupt.get());
        }
        if written.contains(&offset_of!(Control, intx)) {
            self.intx.set_level(self.control.intx.get() & 1 != 0);
        }
        if written.contains(&offset_of!(Control, dma_command)) {
            self.dma.start(self.control);
        }
    }

    fn read_ports(&self, offset: u64, data: &mut [u8]) {
        match offset {
            bar5::SIGNATURE..bar5::SCRATCH => read(Signature::PROBE.as_bytes(), offset, data),
            bar5::SCRATCH..bar5::INTERRUPT => {
                read(&self.port_scratch, offset - bar5::SCRATCH, data)
            }
            _ => read(self.control.interrupt.as_bytes(), offset - bar5::INTERRUPT, data),
        }
    }

    fn write_ports(&mut self, offset: u64, data: &[u8]) {
        match offset {
            bar5::SIGNATURE..bar5::SCRATCH => {}
            bar5::SCRATCH..bar5::INTERRUPT => {
                write(&mut self.port_scratch, offset - bar5::SCRATCH, data)
            }
            _ => {
                write(self.control.interrupt.as_mut_bytes(), offset - bar5::INTERRUPT, data);
                if offset == bar5::INTERRUPT {
                    self.raise(self.control.interrupt.get());
                }
            }
        }
    }
}

impl PciDevice for Probe {
    fn read_bar(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.log.count(bar, Direction::Read);
        data.fill(0);
        match bar {
            BarIndex::Bar0 => self.read_registers(offset, data),
            BarIndex::Bar2 => read(&self.ram, offset, data),
            BarIndex::Bar4 => {
                if let Some(offset) = offset.checked_sub(bar4::SIGNATURE) {
                    read(Signature::PROBE.as_bytes(), offset, data);
                }
            }
            BarIndex::Bar5 => self.read_ports(offset, data),
            BarIndex::Bar1 | BarIndex::Bar3 => {}
        }
        if is_logged(bar, offset) {
            self.log.record(bar, offset, Direction::Read, data);
        }
    }

    fn write_bar(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.log.count(bar, Direction::Write);
        if is_logged(bar, offset) {
            self.log.record(bar, offset, Direction::Write, data);
        }
        match bar {
            BarIndex::Bar0 => self.write_registers(offset, data),
            BarIndex::Bar2 => write(&mut self.ram, offset, data),
            BarIndex::Bar5 => self.write_ports(offset, data),
            BarIndex::Bar1 | BarIndex::Bar3 | BarIndex::Bar4 => {}
        }
    }

    fn reset(&mut self, kind: ResetKind) {
        let count = match kind {
            ResetKind::FunctionLevel => &mut self.resets.function_level,
            ResetKind::Hot => &mut self.resets.hot,
            ResetKind::PowerManagement => &mut self.resets.power_management,
        };
        *count += 1;
        self.control = Control::RESET;
        self.scratch.fill(0);
        self.port_scratch.fill(0);
        self.dma.reset();
        // New memory costs nothing until it is used, however much it is; filling the old would.
        let size = std::mem::take(&mut self.ram).len();
        self.ram = vec![0; size];
    }
}

/// Whether an access goes into the log, not just into the counts.
fn is_logged(bar: BarIndex, offset: u64) -> bool {
    bar != BarIndex::Bar0 || !(bar0::LOG..bar0::BUFFER).contains(&offset)
}

/// Reads `bytes` from `offset` on, as far as there are any.
fn read(bytes: &[u8], offset: u64, data: &mut [u8]) {
    let bytes = bytes.iter().skip(offset as usize);
    data.iter_mut().zip(bytes).for_each(|(data, byte)| *data = *byte);
}

/// Writes `bytes` from `offset` on, as far as there are any.
fn write(bytes: &mut [u8], offset: u64, data: &[u8]) {
    let bytes = bytes.iter_mut().skip(offset as usize);
    bytes.zip(data).for_each(|(byte, data)| *byte = *data);
}
