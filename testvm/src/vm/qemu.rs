//! QEMU as a monitor: its command line, and a process that is controlled over QMP.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use vmm::{
    Ending, MemoryDeviceConfig, OnReset, PciPlace, ProbeConfig, VirtioTransport,
    memory::backing::Backing,
};

use super::{
    Accelerator, ConsoleText, IommuConfig, MemoryDevice, MonitorProcess, RunningMachine, VmConfig,
    VmError, Vmm,
    process::{option, switch},
    qmp::{Qmp, QmpError},
};

/// QEMU, as a shell finds it.
pub const QEMU: &str = "qemu-system-x86_64";

/// A QEMU that runs. It ends when this is dropped.
pub(super) struct Qemu {
    process: MonitorProcess,
    qmp: Mutex<Qmp>,
}

impl Qemu {
    /// Starts one; returns the far end of its second serial port too.
    pub(super) fn start(config: &VmConfig) -> Result<(Self, UnixStream), VmError> {
        let arguments = arguments(config)?;
        let files = TempDir::with_prefix("moat-qemu-")?;
        let path = files.path().to_owned();
        let agent = UnixListener::bind(path.join("agent"))?;
        let (ours, theirs) = UnixStream::pair()?;
        let (input, output) = (OwnedFd::from(theirs.try_clone()?), OwnedFd::from(theirs));
        let initrd = path.join("initramfs");
        if !config.initrd.is_empty() {
            fs::write(&initrd, &config.initrd)?;
        }
        let process = MonitorProcess::start(QEMU, files, |command: &mut Command| {
            command.args(arguments).arg("-kernel").arg(&config.kernel);
            if !config.initrd.is_empty() {
                command.arg("-initrd").arg(initrd);
            }
            command
                .args(["-qmp", "stdio", "-serial", &option("file:", &path.join("console"))])
                .args(["-chardev", &option("socket,id=agent,path=", &path.join("agent"))])
                // The microvm machine accepts only one -serial.
                .args(["-device", "isa-serial,chardev=agent"])
                .stdin(input)
                .stdout(output);
        })?;
        let qmp = Qmp::open(ours).map_err(|error| match error {
            QmpError::Ended => process.ended(),
            error => error.into(),
        })?;
        // QEMU connects its serial ports before it sends its QMP greeting.
        let (stream, _) = agent.accept()?;
        Ok((Self { process, qmp: Mutex::new(qmp) }, stream))
    }

    /// A thread that panicked during a command left at most an unread answer.
    fn qmp(&self) -> MutexGuard<'_, Qmp> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn property(&self, path: &str, name: &'static str) -> Result<u64, VmError> {
        let arguments = json!({"path": path, "property": name});
        let value = self.qmp().execute("qom-get", arguments)?;
        value.as_u64().ok_or(VmError::NoNumber(name))
    }
}

impl RunningMachine for Qemu {
    fn memory_device(&self, name: &str) -> Result<MemoryDevice, VmError> {
        let path = format!("/machine/peripheral/{name}");
        let address = self.property(&path, "memaddr")?;
        let size = self.property(&format!("/objects/{name}-memory"), "size")?;
        Ok(MemoryDevice {
            region: address..address + size,
            requested: self.property(&path, "requested-size")?,
            plugged: self.plugged(name)?,
        })
    }

    fn plugged(&self, name: &str) -> Result<u64, VmError> {
        self.property(&format!("/machine/peripheral/{name}"), "size")
    }

    fn request(&self, name: &str, bytes: u64) -> Result<(), VmError> {
        let path = format!("/machine/peripheral/{name}");
        let arguments = json!({"path": path, "property": "requested-size", "value": bytes});
        self.qmp().execute("qom-set", arguments)?;
        Ok(())
    }

    fn process(&self) -> Option<&MonitorProcess> {
        Some(&self.process)
    }

    fn wait_for_end(&self, timeout: Duration) -> Option<Ending> {
        match self.qmp().wait_for_shutdown(timeout) {
            Ok(reason) => Some(match reason?.as_str() {
                "guest-shutdown" => Ending::PowerOff,
                "guest-reset" => Ending::Reset,
                "guest-panic" => Ending::Panic,
                other => Ending::MachineError(format!("QEMU ended it: {other}")),
            }),
            Err(_) => Some(Ending::MachineError(self.process.ended().to_string())),
        }
    }

    fn console(&self) -> ConsoleText {
        ConsoleText::from(&self.process.read("console")[..])
    }
}

/// The command line, but for the kernel, the initramfs and where QEMU is to be found.
fn arguments(config: &VmConfig) -> Result<Vec<String>, VmError> {
    reject_unsupported(config)?;
    let mut machine = match config.vmm {
        Vmm::QemuMicrovm(_) => "microvm".to_owned(),
        _ => "q35".to_owned(),
    };
    let mut memory = format!("{}B", config.memory);
    let mut arguments = Arguments::default();
    arguments.add(match config.vmm.accelerator() {
        Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
        Accelerator::Tcg => ["-accel", "tcg", "-cpu", "max"],
    });
    // No devices besides those named here.
    arguments.add(["-nodefaults", "-no-user-config", "-display", "none"]);
    arguments.add(["-smp", &config.vcpus.to_string(), "-append", &config.command_line()]);
    if config.on_reset == OnReset::End {
        arguments.add(["-no-reboot"]);
    }
    if config.ram.backing != Backing::Anonymous {
        machine += ",memory-backend=ram";
        arguments.add(["-object", &backend("ram", config.memory, &config.ram.backing)]);
    }
    // Before all other devices: only those that follow are behind it.
    match config.iommu {
        None => {}
        Some(IommuConfig::Virtio { bypass }) => {
            arguments.device(format!("virtio-iommu-pci,boot-bypass={}", switch(bypass)));
        }
        Some(IommuConfig::Intel) => {
            machine += ",kernel-irqchip=split";
            arguments.device("intel-iommu,intremap=on");
        }
    }
    arguments.probes(&config.probes);
    if config.entropy {
        arguments.device(match (config.virtio_transport, config.iommu) {
            (VirtioTransport::Mmio, _) => "virtio-rng-device",
            (VirtioTransport::Pci, None) => "virtio-rng-pci,disable-legacy=on",
            (VirtioTransport::Pci, Some(_)) => "virtio-rng-pci,disable-legacy=on,iommu_platform=on",
        });
    }
    arguments.memory_devices(&config.memory_devices);
    if !config.memory_devices.is_empty() {
        let regions: u64 = config.memory_devices.iter().map(|device| device.size.0).sum();
        memory += &format!(",maxmem={}B,slots=1", config.memory + regions);
    }
    for ProbeConfig { memory, .. } in &config.probes {
        if *memory != ProbeConfig::default().memory {
            arguments.device(format!("pci-testdev,membar={memory}"));
        }
    }
    if config.nic {
        arguments.device("e1000e");
    }
    arguments.add(["-machine", &machine, "-m", &memory]);
    Ok(arguments.0)
}

/// An error names what such a QEMU does not support.
fn reject_unsupported(config: &VmConfig) -> Result<(), VmError> {
    let microvm = matches!(config.vmm, Vmm::QemuMicrovm(_));
    let has_virtio = config.entropy || !config.memory_devices.is_empty();
    let (pci, mmio) = (VirtioTransport::Pci, VirtioTransport::Mmio);
    for (is_wanted, what) in [
        (microvm && !config.memory_devices.is_empty(), "virtio-mem devices"),
        (microvm && (!config.probes.is_empty() || config.nic), "PCI devices"),
        (microvm && config.iommu.is_some(), "an IOMMU"),
        (microvm && has_virtio && config.virtio_transport == pci, "virtio over PCI"),
        (!microvm && has_virtio && config.virtio_transport == mmio, "virtio over MMIO"),
        (!config.has_plain_memory(), "memory settings of moat's own, as a NUMA node"),
    ] {
        if is_wanted {
            return Err(VmError::Unsupported { vmm: config.vmm, what });
        }
    }
    Ok(())
}

/// An `-object` for memory of the host.
fn backend(id: &str, size: u64, backing: &Backing) -> String {
    // Like moat, it may reserve more memory than the host has.
    let backend = match backing {
        Backing::Anonymous => "memory-backend-ram,reserve=off".to_owned(),
        Backing::Memfd => "memory-backend-memfd,reserve=off".to_owned(),
        Backing::Hugetlb2M => {
            "memory-backend-memfd,hugetlb=on,hugetlbsize=2M,reserve=off".to_owned()
        }
        Backing::Hugetlb1G => {
            "memory-backend-memfd,hugetlb=on,hugetlbsize=1G,reserve=off".to_owned()
        }
        Backing::File(path) => option("memory-backend-file,share=on,mem-path=", path),
    };
    format!("{backend},id={id},size={size}")
}

/// A device with a DMA engine that reaches all RAM.
const EDU: &str = "edu,dma_mask=0xffffffff";
/// The first slot whose number is chosen here, and not by QEMU.
const FIRST_SLOT: usize = 0x10;

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn add<const N: usize>(&mut self, arguments: [&str; N]) {
        self.0.extend(arguments.map(str::to_owned));
    }

    fn device(&mut self, device: impl AsRef<str>) {
        self.add(["-device", device.as_ref()]);
    }

    /// An `edu` for each function. Linux takes a function that it finds late for one of several only if
    /// the multifunction bit is set in its own header, and not just in that of function 0.
    fn probes(&mut self, probes: &[ProbeConfig]) {
        let mut slots = FIRST_SLOT..;
        let mut slot = || slots.next().unwrap_or_default();
        let mut behind_bridge = 0;
        for ProbeConfig { place, functions, .. } in probes {
            let place = match place {
                PciPlace::RootComplex if *functions == 1 => {
                    self.device(EDU);
                    continue;
                }
                PciPlace::RootComplex => format!("addr={:x}", slot()),
                PciPlace::RootPort { access_control } => {
                    let slot = slot();
                    let no_acs = switch(!access_control);
                    self.device(format!(
                        "pcie-root-port,id=port{slot},addr={slot:x},chassis={slot},disable-acs={no_acs}"
                    ));
                    format!("bus=port{slot},addr=0")
                }
                PciPlace::ConventionalBridge => {
                    if behind_bridge == 0 {
                        self.device(format!("pcie-pci-bridge,id=conventional,addr={:x}", slot()));
                    }
                    behind_bridge += 1;
                    format!("bus=conventional,addr={behind_bridge:x}")
                }
            };
            let several = if *functions > 1 { ",multifunction=on" } else { "" };
            for function in 0..*functions {
                self.device(format!("{EDU},{place}.{function}{several}"));
            }
        }
    }

    fn memory_devices(&mut self, devices: &[MemoryDeviceConfig]) {
        for (index, device) in devices.iter().enumerate() {
            let MemoryDeviceConfig { size, requested, block_size, memory, .. } = device;
            let memdev = format!("mem{index}-memory");
            self.add(["-object", &backend(&memdev, size.0, &memory.backing)]);
            self.device(format!(
                "virtio-mem-pci,id=mem{index},memdev={memdev},requested-size={},block-size={}",
                requested.0, block_size.0
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Iommu;

    #[test]
    fn the_error_names_what_qemu_does_not_support() {
        const Q35: Vmm = Vmm::Qemu(Accelerator::Tcg, Iommu::Virtio);
        const MICROVM: Vmm = Vmm::QemuMicrovm(Accelerator::Kvm);
        let config = |vmm| VmConfig::new(vmm, "kernel".into());
        let device = MemoryDeviceConfig::new(1 << 30);
        let with_device = |vmm| VmConfig { memory_devices: vec![device.clone()], ..config(vmm) };
        let on_node = MemoryDeviceConfig { node: Some(1), ..device.clone() };
        let virtio_transport = VirtioTransport::Mmio;
        for (config, reason) in [
            (with_device(MICROVM), "microvm, kvm cannot make a machine with virtio-mem devices"),
            (VmConfig { probes: vec![ProbeConfig::default()], ..config(MICROVM) }, "PCI devices"),
            (VmConfig { iommu: Some(IommuConfig::Intel), ..config(MICROVM) }, "an IOMMU"),
            (VmConfig { virtio_transport, ..with_device(Q35) }, "virtio over MMIO"),
            (VmConfig { memory_devices: vec![on_node], ..config(Q35) }, "NUMA node"),
        ] {
            let error = arguments(&config).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} should contain {reason:?}");
        }
        assert!(arguments(&with_device(Q35)).is_ok());
        assert!(arguments(&config(MICROVM)).is_ok());
    }
}
