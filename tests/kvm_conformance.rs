//! Our virtio-mem device on both transports, and QEMU's, get the same requests from a bare-metal driver on
//! KVM. `docs/conformance.md` lists where QEMU answers otherwise, and judges which is right.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use bare_metal::Program;
use bare_metal::virtio_mem::{MOAT_ECAM, Q35_ECAM, mmio_registers, pci_registers};
use support::conformance::{Answered, Device, REGION, REQUESTED, interview};
use tempfile::TempDir;
use testvm::vm::{self, Accelerator, Iommu, MEM0, VmConfig, Vmm};
use vmm::memory::backing::Backing;
use vmm::{MemoryDeviceConfig, Size, VirtioTransport};

const QEMU: Vmm = Vmm::Qemu(Accelerator::Kvm, Iommu::Virtio);

/// What a monitor's device answers.
fn answers(vmm: Vmm, virtio_transport: VirtioTransport) -> Vec<Answered> {
    let directory = TempDir::new().unwrap();
    let (kernel, ram) = (directory.path().join("program.elf"), directory.path().join("ram"));
    bare_metal::write_elf(&kernel);
    let (machine, stream) = vm::start(&VmConfig {
        ram: Backing::File(ram.clone()).into(),
        virtio_transport,
        memory_devices: vec![MemoryDeviceConfig {
            requested: Size(REQUESTED),
            ..MemoryDeviceConfig::new(REGION)
        }],
        ..VmConfig::new(vmm, kernel)
    })
    .unwrap();
    let mut program = Program::connect(stream, &ram);
    let registers = match (vmm, virtio_transport) {
        (_, VirtioTransport::Mmio) => mmio_registers(),
        (Vmm::Moat, VirtioTransport::Pci) => pci_registers(&mut program, MOAT_ECAM),
        (_, VirtioTransport::Pci) => pci_registers(&mut program, Q35_ECAM),
    };
    let request = Box::new(move |bytes| machine.request(MEM0, bytes).unwrap());
    interview(Device { program, registers, request })
}

/// Row, question, expected answer and the device's answer, where they differ.
fn differences(answers: &[Answered]) -> Vec<[String; 4]> {
    answers
        .iter()
        .filter(|answered| answered.got != answered.wanted)
        .map(|answered| {
            [answered.row, answered.question, &answered.wanted, &answered.got].map(str::to_owned)
        })
        .collect()
}

/// The rows of the table in docs/conformance.md, without the judgement.
fn documented() -> Vec<[String; 4]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        [0, 1, 2, 3].map(|cell| cells[cell].trim_matches('`').to_owned())
    })
    .collect()
}

#[test]
fn our_device_answers_as_the_specification_wants_on_either_transport() {
    for transport in [VirtioTransport::Mmio, VirtioTransport::Pci] {
        let answers = answers(Vmm::Moat, transport);
        assert!(answers.len() > 70, "{} answers", answers.len());
        assert_eq!(differences(&answers), Vec::<[String; 4]>::new(), "{transport:?}");
    }
}

#[test]
fn qemus_device_differs_as_documented_and_nowhere_else() {
    let version = Command::new(vm::QEMU).arg("--version").output().unwrap().stdout;
    let version = String::from_utf8_lossy(&version);
    let answers = answers(QEMU, VirtioTransport::Pci);
    assert_eq!(differences(&answers), documented(), "{version}");
}
