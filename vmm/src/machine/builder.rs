//! Building a machine: its parts in the order in which they need each other.

use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use devices::dma::{DmaMemory, DmaPath, DmaRegion, FixedRequester, Leases};
use devices::pci::{ConfigPorts, Ecam, InterruptLine, RootComplex};
use devices::platform::{
    AbsentClock, KeyboardController, PowerRegisters, Pvpanic, ResetControl, SystemControlPortA,
};
use devices::probe::Probe;
use devices::serial::SerialPort;
use devices::virtio::VirtioDevice;
use devices::virtio::console::Console;
use devices::virtio::fs::FileSystem;
use devices::virtio::iommu::{Translations, VirtioIommu, VirtioIommuConfig};
use devices::virtio::rng::Rng;
use devices::virtio::transport::{MmioTransport, PciTransport, Transport};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{Address, GuestAddress, GuestMemoryMmap};

use super::control::{MachineControl, Parts};
use super::error::MachineError;
use super::files::Files;
use super::io::{MachineIo, SharedFiles};
use super::pause::Pause;
use super::running::Running;
use super::spec::{MachineSpec, VirtioTransport};
use crate::arch::x86_64::boot::{self, BootSource, Entry};
use crate::arch::x86_64::clocks::Clocks;
use crate::arch::x86_64::cpuid::CpuidTemplate;
use crate::arch::x86_64::layout::{self, gsi, port};
use crate::arch::x86_64::machine_check::MachineChecks;
use crate::arch::x86_64::registers::{self, UncachedMemory};
use crate::board::buses::GuestBuses;
use crate::board::console_port::ConsolePorts;
use crate::board::memory_device::Enforcement;
use crate::board::memory_device::{MemoryDevice, Surroundings};
use crate::board::pci::{KvmDoorbell, KvmLine, KvmMessages, Pci, PciDevices, PciPlace};
use crate::board::serial::SerialWires;
use crate::board::worker::{DeviceWork, EventSignal, HaltWatch, Worker};
use crate::exit::{Ending, EndingCell};
use crate::firmware::acpi::{
    self, HotpluggableMemory, IommuPlace, PciHostBridge, Platform, VirtioMmioDevice,
};
use crate::kvm;
use crate::kvm::VcpuError;
use crate::memory::MemoryError;
use crate::memory::host::HostMemory;
use crate::memory::slots::{MemorySlots, SlotId};
use crate::quiesce::VcpuGate;
use crate::symbols::GuestSymbols;
use crate::threads::{self, Role};
use crate::vcpu::{self, Vcpu};
use crate::violations::ViolationPolicy;

/// A machine under construction.
pub struct Builder<'a> {
    spec: &'a MachineSpec,
    files: &'a mut Files,
    control: &'a MachineControl,
    io: &'a MachineIo,
    /// The wires of the console's serial port, then those of the agent's.
    serial: &'a [SerialWires],
    vm: Arc<VmFd>,
    cpuid: CpuidTemplate,
    machine_checks: Option<MachineChecks>,
    slots: MemorySlots,
    gate: Arc<VcpuGate>,
    leases: Leases,
    ending: Arc<EndingCell>,
    buses: GuestBuses,
    /// The first guest address above everything placed so far.
    next_address: u64,
    platform: Platform,
    pci: PciDevices,
    iommu: Option<Arc<Translations>>,
    /// Each probe with the doorbell that starts its DMA.
    probes: Vec<(Arc<EventSignal>, Arc<Mutex<Probe>>)>,
    work: Vec<DeviceWork>,
    /// The work of file systems, each done by a thread of its own: the host's files may be slow.
    file_work: Vec<DeviceWork>,
}

impl<'a> Builder<'a> {
    /// Opens KVM and checks what can be checked before anything is created.
    pub fn new(
        spec: &'a MachineSpec,
        files: &'a mut Files,
        io: &'a MachineIo,
        serial: &'a [SerialWires],
        control: &'a MachineControl,
    ) -> Result<Self, MachineError> {
        let kvm = kvm::open()?;
        check(spec, io, &kvm)?;
        let vm = Arc::new(kvm.create_vm().map_err(MachineError::kvm("KVM_CREATE_VM"))?);
        let mut cpuid = CpuidTemplate::new(&kvm, spec.cpus)?;
        check_address_space(ram_end(spec.memory.0), &cpuid)?;
        let mut machine_checks = None;
        let policies = || spec.virtio_mem.iter().map(|device| device.on_violation);
        if policies().any(|policy| policy == ViolationPolicy::MachineCheck) {
            cpuid.add_machine_check_recovery();
            machine_checks = Some(MachineChecks::new(&kvm, cpuid.vendor())?);
        }
        if spec.enforce == Enforcement::Strict && policies().next().is_some() {
            vcpu::enable_emulation_failures(&vm)?;
        }
        let platform = Platform {
            vcpus: spec.cpus,
            ram_bytes: spec.memory.0,
            hotpluggable: Vec::new(),
            virtio_mmio: Vec::new(),
            pci: None,
            iommu: None,
        };
        let slots = MemorySlots::new(Arc::clone(&vm));
        let leases = Leases::default();
        Ok(Self {
            gate: Arc::new(VcpuGate::new(spec.cpus as usize)),
            ending: Arc::clone(&control.ending),
            buses: GuestBuses::new(slots.clone(), leases.clone()),
            slots,
            leases,
            next_address: ram_end(spec.memory.0).max(layout::MMIO_GAP_END.0),
            pci: PciDevices::default(),
            iommu: None,
            probes: Vec::new(),
            work: Vec::new(),
            file_work: Vec::new(),
            platform,
            cpuid,
            machine_checks,
            spec,
            files,
            control,
            io,
            serial,
            vm,
        })
    }

    /// Creates all the parts, connects them, and lets the vCPUs run.
    ///
    /// If the machine has been stopped meanwhile, its vCPUs do not run.
    pub fn build(mut self) -> Result<(Parts, Running), MachineError> {
        self.create_interrupt_controllers()?;
        let ram = self.create_ram()?;
        let memory = guest_memory(&ram)?;
        self.buses.ram = memory.clone();
        self.create_memory_devices()?;
        self.create_pci_window()?;
        let dma = self.dma_memory(&ram)?;
        self.attach_platform_devices()?;
        let dma = self.attach_iommu(dma)?;
        self.attach_virtio_devices(&dma)?;
        self.attach_probes(&dma)?;
        self.attach_pci()?;
        let entry = self.load(&memory)?;
        let symbols = Arc::new(match &self.files.symbols {
            Some(file) => GuestSymbols::from_file(Arc::clone(file)),
            None => GuestSymbols::from_memory(memory.clone()),
        });
        self.buses.symbols = Some(Arc::clone(&symbols));
        let (vcpus, halted) = self.create_vcpus(&memory, &entry)?;
        let clocks = Clocks::new(Arc::clone(&self.vm), vcpus.iter().map(|vcpu| &vcpu.fd))?;
        let (gate, ending) = (self.gate, self.ending);
        let devices = Arc::clone(&self.control.devices);
        let pause = Arc::new(Pause::new(Arc::clone(&gate), devices, clocks, Arc::clone(&ending)));
        let parts = Parts {
            pause: Arc::clone(&pause),
            vcpus: self.spec.cpus,
            memory: self.spec.memory.0,
            enforcement: self.spec.enforce,
            slots: self.slots,
            memory_devices: vcpus[0].buses.memory_devices.clone(),
            pci: vcpus[0].buses.pci.clone(),
            iommu: self.iommu,
            symbols,
        };
        if ending.get().is_some() {
            gate.end();
        }
        let watch = HaltWatch::new(gate, halted, Arc::clone(&ending))
            .map_err(MachineError::host("cannot create a timer"))?;
        let mut running = Running { pause, vcpus: Vec::new(), workers: Vec::new(), _ram: ram };
        let work = iter::once((Role::Worker, self.work, Some(watch)));
        let file_work = self.file_work.into_iter().map(|work| (Role::FileSystem, vec![work], None));
        for (role, work, watch) in work.chain(file_work) {
            let devices = &running.pause.devices;
            match Worker::start(role, work, watch, devices, Arc::clone(&ending)) {
                Ok(worker) => running.workers.push(worker),
                Err(error) => {
                    running.end();
                    return Err(error.into());
                }
            }
        }
        for vcpu in vcpus {
            match start(vcpu, Arc::clone(&ending)) {
                Ok(thread) => running.vcpus.push(thread),
                Err(error) => {
                    running.end();
                    return Err(error.into());
                }
            }
        }
        Ok((parts, running))
    }

    fn create_interrupt_controllers(&self) -> Result<(), MachineError> {
        self.vm
            .set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(MachineError::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        self.vm.set_tss_address(layout::KVM_TSS).map_err(MachineError::kvm("KVM_SET_TSS_ADDR"))?;
        self.vm.create_irq_chip().map_err(MachineError::kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.vm.create_pit2(pit).map_err(MachineError::kvm("KVM_CREATE_PIT2"))
    }

    fn create_ram(&mut self) -> Result<Vec<(HostMemory, SlotId)>, MachineError> {
        let to_populate =
            if self.spec.memory_backing.is_preallocated() { self.spec.memory.0 } else { 0 };
        let work = self.control.start_work(to_populate);
        let create = |memory: HostMemory| {
            let memory = memory.with_work(work.clone());
            let size = memory.size();
            memory.populate(0..size).map_err(|source| MemoryError::Populate { size, source })?;
            let slot = self.slots.add(&memory, 0..size).map_err(MemoryError::Slot)?;
            Ok((memory, slot))
        };
        let ranges = layout::ram_ranges(self.spec.memory.0);
        let memory =
            HostMemory::map_ranges(&ranges, &self.spec.memory_backing, &mut self.files.ram)?;
        memory.into_iter().map(create).collect()
    }

    /// Reserves guest addresses above 4 GiB for PCI, if the machine has PCI.
    fn create_pci_window(&mut self) -> Result<(), MachineError> {
        if self.spec.has_pci() {
            let size = layout::PCI_MEMORY_64_BYTES;
            // Aligned to its size, so that one MTRR can describe it.
            let start = self.next_address.next_multiple_of(size);
            check_address_space(start.saturating_add(size), &self.cpuid)?;
            self.platform.pci = Some(PciHostBridge { memory_64: (start, size) });
        }
        Ok(())
    }

    fn create_memory_devices(&mut self) -> Result<(), MachineError> {
        let surroundings = Surroundings {
            enforcement: self.spec.enforce,
            slots: &self.slots,
            gate: &self.gate,
            leases: &self.leases,
            ending: &self.ending,
        };
        let files = &mut self.files.memory_devices;
        for (index, (config, file)) in self.spec.virtio_mem.iter().zip(files).enumerate() {
            let alignment = layout::REGION_ALIGNMENT.max(config.block_size.0);
            let address = self.next_address.next_multiple_of(alignment);
            self.next_address = address.saturating_add(config.size.0);
            check_address_space(self.next_address, &self.cpuid)?;
            let device = MemoryDevice::new(
                format!("mem{index}"),
                GuestAddress(address),
                config,
                file,
                &surroundings,
            )?;
            self.platform.hotpluggable.push(HotpluggableMemory {
                address,
                size: config.size.0,
                node: config.node.unwrap_or_default(),
            });
            self.buses.memory_devices.push(Arc::new(device));
        }
        Ok(())
    }

    fn dma_memory(&self, ram: &[(HostMemory, SlotId)]) -> Result<DmaMemory, MachineError> {
        let fixed = ram.iter().map(|(memory, _)| DmaRegion::fixed(memory.mapping()));
        let partial = self
            .buses
            .memory_devices
            .iter()
            .map(|device| DmaRegion::partial(device.memory().mapping(), device.reachable()));
        Ok(DmaMemory::new(fixed.chain(partial).collect(), self.leases.clone())?)
    }

    fn attach_platform_devices(&mut self) -> Result<(), MachineError> {
        let power = PowerRegisters::new(self.ending.clone());
        let pvpanic = Pvpanic::new(self.ending.clone());
        let ports = &mut self.buses.ports;
        ports.insert(port::POWER.into(), PowerRegisters::PORTS, Arc::new(Mutex::new(power)))?;
        ports.insert(port::PVPANIC.into(), Pvpanic::PORTS, Arc::new(Mutex::new(pvpanic)))?;
        let keyboard = Arc::new(Mutex::new(KeyboardController::new(self.ending.clone())));
        ports.insert(KeyboardController::PORT, KeyboardController::PORTS, keyboard)?;
        let port_a = Arc::new(Mutex::new(SystemControlPortA::new(self.ending.clone())));
        ports.insert(SystemControlPortA::PORT, SystemControlPortA::PORTS, port_a)?;
        let clock = Arc::new(Mutex::new(AbsentClock));
        ports.insert(AbsentClock::PORT, AbsentClock::PORTS, clock)?;
        let places = [(port::SERIAL_1, gsi::SERIAL_1), (port::SERIAL_2, gsi::SERIAL_2)];
        for (wires, (port, gsi)) in self.serial.iter().zip(places) {
            let serial = wires.port(self.interrupt_line(gsi)?);
            self.buses.ports.insert(port.into(), SerialPort::PORTS, serial)?;
        }
        Ok(())
    }

    /// Returns how all later devices reach memory: through the IOMMU if the machine has one. The IOMMU is
    /// the first virtio device, so that its place is known.
    fn attach_iommu(&mut self, memory: DmaMemory) -> Result<DmaPath, MachineError> {
        let Some(config) = self.spec.iommu else {
            return Ok(DmaPath::direct(memory));
        };
        let doorbell = doorbell()?;
        let endpoints = match self.spec.transport {
            VirtioTransport::Mmio => vec![layout::endpoint::PCI, layout::endpoint::VIRTIO_MMIO],
            VirtioTransport::Pci => vec![layout::endpoint::PCI],
        };
        let config = VirtioIommuConfig { endpoints, bypass: config.bypass };
        let device = VirtioIommu::new(config, doorbell.clone(), self.leases.clone());
        let translations = device.translations();
        let own_path = DmaPath::direct(memory.clone()).of("iommu0");
        self.attach_virtio(Arc::new(device), &own_path, doorbell)?;
        self.platform.iommu = Some(match self.spec.transport {
            VirtioTransport::Mmio => IommuPlace::Mmio(layout::VIRTIO_MMIO.0),
            VirtioTransport::Pci => IommuPlace::Pci(PciDevices::FIRST),
        });
        self.iommu = Some(Arc::clone(&translations));
        Ok(DmaPath::through(translations, memory))
    }

    /// The entropy device comes last, so that on PCI the probes follow it directly.
    fn attach_virtio_devices(&mut self, dma: &DmaPath) -> Result<(), MachineError> {
        for device in self.buses.memory_devices.clone() {
            let dma = dma.of(device.id());
            let transport = self.attach_virtio(device.device(), &dma, doorbell()?)?;
            device.attach(transport);
        }
        if let Some(ConsolePorts { ports, doorbell }) = &self.io.console_ports {
            let device = Console::new(ports.clone(), doorbell.clone())?;
            self.attach_virtio(Arc::new(device), &dma.of("console0"), doorbell.clone())?;
        }
        for (index, SharedFiles { tag, server }) in self.io.file_systems.iter().enumerate() {
            let device = Arc::new(FileSystem::new(tag, Arc::clone(server))?);
            let doorbell = doorbell()?;
            let transport =
                self.attach(device, &dma.of(&format!("fs{index}")), doorbell.clone())?;
            self.file_work.push(DeviceWork::queues(doorbell, transport));
        }
        let random = std::fs::File::open("/dev/urandom")
            .map_err(MachineError::host("cannot open /dev/urandom"))?;
        self.attach_virtio(Arc::new(Rng::new(Box::new(random))), &dma.of("rng0"), doorbell()?)?;
        Ok(())
    }

    fn attach_virtio(
        &mut self,
        device: Arc<dyn VirtioDevice>,
        dma: &DmaPath,
        doorbell: Arc<EventSignal>,
    ) -> Result<Arc<dyn Transport>, MachineError> {
        let transport = self.attach(device, dma, doorbell.clone())?;
        self.work.push(DeviceWork::queues(doorbell, transport.clone()));
        Ok(transport)
    }

    /// Places a virtio device on PCI or among the virtio-mmio devices.
    fn attach(
        &mut self,
        device: Arc<dyn VirtioDevice>,
        dma: &DmaPath,
        doorbell: Arc<EventSignal>,
    ) -> Result<Arc<dyn Transport>, MachineError> {
        let on_pci = self.spec.transport == VirtioTransport::Pci;
        let transport: Arc<dyn Transport> = match self.platform.pci.filter(|_| on_pci) {
            None => self.attach_mmio(device, dma, &doorbell)?,
            Some(bridge) => {
                let doorbell = KvmDoorbell::new(doorbell, Arc::clone(&self.vm), bridge);
                let (transport, function) =
                    PciTransport::new(device, dma, self.messages(), Arc::new(doorbell))?;
                let function = function.named(dma.device().to_owned());
                self.pci.add(PciPlace::RootComplex, vec![function]);
                transport
            }
        };
        Ok(transport)
    }

    fn attach_mmio(
        &mut self,
        device: Arc<dyn VirtioDevice>,
        dma: &DmaPath,
        doorbell: &Arc<EventSignal>,
    ) -> Result<Arc<Mutex<MmioTransport>>, MachineError> {
        let index = self.platform.virtio_mmio.len();
        let gsi = gsi::VIRTIO_MMIO[index];
        let address = layout::VIRTIO_MMIO.unchecked_add(index as u64 * MmioTransport::SIZE);
        let interrupt = self.interrupt_line(gsi)?;
        let notify = IoEventAddress::Mmio(address.0 + MmioTransport::QUEUE_NOTIFY);
        self.vm
            .register_ioevent(&doorbell.0, &notify, NoDatamatch)
            .map_err(MachineError::kvm("KVM_IOEVENTFD"))?;
        let endpoint = layout::endpoint::VIRTIO_MMIO.start() + index as u32;
        let memory = dma.view(Arc::new(FixedRequester(endpoint)));
        let endpoint = memory.is_translated().then_some(endpoint);
        let transport = MmioTransport::new(device, memory, interrupt, doorbell.clone());
        let transport = Arc::new(Mutex::new(transport));
        self.buses.memory.insert(address.0, MmioTransport::SIZE, transport.clone())?;
        let address = address.0 as u32;
        self.platform.virtio_mmio.push(VirtioMmioDevice { address, gsi, endpoint });
        Ok(transport)
    }

    fn attach_probes(&mut self, dma: &DmaPath) -> Result<(), MachineError> {
        for (index, probe) in self.spec.probe.iter().enumerate() {
            let functions = (0..probe.functions).map(|function| {
                let name = match probe.functions {
                    1 => format!("probe{index}"),
                    _ => format!("probe{index}.{function}"),
                };
                let doorbell = doorbell()?;
                let (function, device) =
                    Probe::new(probe.memory, &dma.of(&name), self.messages(), doorbell.clone())?;
                self.probes.push((doorbell, device.clone()));
                Ok(function.build(device).named(name))
            });
            let functions = functions.collect::<Result<_, MachineError>>()?;
            self.pci.add(probe.place, functions);
        }
        Ok(())
    }

    /// Builds the PCI topology and makes its configuration space reachable by ports and ECAM.
    fn attach_pci(&mut self) -> Result<(), MachineError> {
        let reset = ResetControl::new(self.ending.clone());
        if self.platform.pci.is_none() {
            let reset = Arc::new(Mutex::new(reset));
            self.buses.ports.insert(ResetControl::PORT, ResetControl::PORTS, reset)?;
            return Ok(());
        }
        let topology = std::mem::take(&mut self.pci).into_topology();
        let line =
            |gsi| -> Arc<dyn InterruptLine> { Arc::new(KvmLine { vm: Arc::clone(&self.vm), gsi }) };
        let root = Arc::new(RootComplex::new(topology, gsi::PCI.map(line), self.leases.clone())?);
        let ports = ConfigPorts::new(Arc::clone(&root), reset);
        self.buses.ports.insert(
            ConfigPorts::FIRST,
            ConfigPorts::PORTS,
            Arc::new(Mutex::new(ports)),
        )?;
        for (doorbell, probe) in self.probes.drain(..) {
            self.work.push(DeviceWork::dma(doorbell, probe, Arc::clone(&root)));
        }
        let ecam = Ecam::new(Arc::clone(&root));
        self.buses.memory.insert(layout::PCI_ECAM.0, Ecam::SIZE, Arc::new(Mutex::new(ecam)))?;
        self.buses.pci = Some(Arc::new(Pci::new(root)));
        Ok(())
    }

    fn messages(&self) -> Arc<KvmMessages> {
        Arc::new(KvmMessages(Arc::clone(&self.vm)))
    }

    fn interrupt_line(&self, gsi: u32) -> Result<Arc<EventSignal>, MachineError> {
        let line =
            EventSignal::new().map_err(MachineError::host("cannot create an interrupt line"))?;
        self.vm.register_irqfd(&line.0, gsi).map_err(MachineError::kvm("KVM_IRQFD"))?;
        Ok(Arc::new(line))
    }

    /// The guest addresses where devices are, or may be placed.
    fn uncached_memory(&self) -> UncachedMemory {
        let gap = (layout::MMIO_GAP_START.0, layout::MMIO_GAP_END.0 - layout::MMIO_GAP_START.0);
        let pci = self.platform.pci.as_ref().map(|bridge| bridge.memory_64);
        UncachedMemory {
            ranges: [Some(gap), pci].into_iter().flatten().collect(),
            physical_address_bits: self.cpuid.physical_address_bits(),
        }
    }

    fn load(&self, memory: &GuestMemoryMmap) -> Result<Entry, MachineError> {
        let source = BootSource {
            kernel: &self.files.kernel,
            protocol: self.spec.boot_protocol,
            initrd: &self.files.initrd,
            cmdline: &self.spec.command_line(),
        };
        let entry = boot::load(&source, memory, self.spec.memory.0)?;
        acpi::write_tables(memory, &self.platform)?;
        Ok(entry)
    }

    fn create_vcpus(
        &mut self,
        memory: &GuestMemoryMmap,
        entry: &Entry,
    ) -> Result<(Vec<Vcpu>, Vec<Arc<AtomicBool>>), MachineError> {
        let empty = GuestBuses::new(self.slots.clone(), self.leases.clone());
        let buses = Arc::new(std::mem::replace(&mut self.buses, empty));
        let uncached = self.uncached_memory();
        let mut vcpus = Vec::new();
        for index in 0..self.spec.cpus {
            let fd =
                self.vm.create_vcpu(index.into()).map_err(MachineError::kvm("KVM_CREATE_VCPU"))?;
            fd.set_cpuid2(&self.cpuid.for_vcpu(index)?)
                .map_err(MachineError::kvm("KVM_SET_CPUID2"))?;
            registers::set_up(&fd, memory, &uncached, (index == 0).then_some(entry))?;
            if let Some(checks) = &self.machine_checks {
                checks.set_up(&fd, self.cpuid.has_vmx())?;
            }
            vcpus.push(Vcpu {
                index,
                fd,
                buses: Arc::clone(&buses),
                gate: Arc::clone(&self.gate),
                halted: Arc::default(),
                machine_checks: self.machine_checks,
            });
        }
        let halted = vcpus.iter().map(|vcpu| Arc::clone(&vcpu.halted)).collect();
        Ok((vcpus, halted))
    }
}

/// Checks what can be checked before anything is created.
fn check(spec: &MachineSpec, io: &MachineIo, kvm: &Kvm) -> Result<(), MachineError> {
    // Beyond 254, APIC ids do not fit the MADT's local APIC entries.
    let maximum = kvm.get_max_vcpus().min(254) as u32;
    if spec.cpus == 0 || spec.cpus > maximum {
        return Err(MachineError::VcpuCount { requested: spec.cpus, maximum });
    }
    if spec.memory.0 < MachineSpec::MINIMUM_MEMORY || !spec.memory.0.is_multiple_of(4096) {
        let minimum = MachineSpec::MINIMUM_MEMORY;
        return Err(MachineError::MemorySize { requested: spec.memory.0, minimum });
    }
    // The entropy device and the other virtio devices take an interrupt each. On PCI there is no such
    // limit; the topology checks the limits of PCI.
    if spec.transport == VirtioTransport::Mmio {
        let others =
            1 + usize::from(spec.iommu.is_some()) + usize::from(io.console_ports.is_some());
        let (maximum, requested) = (gsi::VIRTIO_MMIO.len() - others, io.file_systems.len());
        if requested > maximum {
            return Err(MachineError::TooManyFileSystems { requested, maximum });
        }
        let (maximum, requested) = (maximum - requested, spec.virtio_mem.len());
        if requested > maximum {
            return Err(MachineError::TooManyDevices { requested, maximum });
        }
    }
    Ok(())
}

fn doorbell() -> Result<Arc<EventSignal>, MachineError> {
    let doorbell = EventSignal::new().map_err(MachineError::host("cannot create a doorbell"))?;
    Ok(Arc::new(doorbell))
}

/// First guest address beyond RAM.
fn ram_end(bytes: u64) -> u64 {
    layout::ram_ranges(bytes).last().map_or(0, |(start, size)| start.0.saturating_add(*size))
}

/// Checks that memory that ends at `end` is within the guest's physical address space.
fn check_address_space(end: u64, cpuid: &CpuidTemplate) -> Result<(), MachineError> {
    let bits = cpuid.physical_address_bits();
    if end > 1 << bits { Err(MachineError::AddressSpace { end, bits }) } else { Ok(()) }
}

fn guest_memory(ram: &[(HostMemory, SlotId)]) -> Result<GuestMemoryMmap, MachineError> {
    let regions = ram.iter().map(|(memory, _)| memory.mapping()).collect();
    Ok(GuestMemoryMmap::from_arc_regions(regions)?)
}

fn start(mut vcpu: Vcpu, ending: Arc<EndingCell>) -> Result<JoinHandle<()>, VcpuError> {
    threads::spawn(Role::Vcpu(vcpu.index), move || {
        // A bug in moat must end the machine, not leave it waiting for this vCPU.
        let run = AssertUnwindSafe(|| vcpu.run());
        let panicked = || Some(Ending::MachineError("a vCPU's thread panicked".into()));
        if let Some(end) = catch_unwind(run).unwrap_or_else(|_| panicked()) {
            ending.set(end);
        }
        vcpu.gate.leave(vcpu.index as usize);
    })
    .map_err(VcpuError::Thread)
}
