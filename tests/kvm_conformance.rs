//! Our virtio-mem device on both transports, and QEMU's, asked the same by a bare-metal driver over
//! real KVM. Where QEMU answers otherwise, `docs/conformance.md` says so, and judges who is right.

mod support;

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bare_metal::Program;
use bare_metal::virtio_mem::{MOAT_ECAM, Q35_ECAM, mmio_registers, pci_registers};
use serde_json::json;
use support::conformance::{Answered, Device, REGION, REQUESTED, interview};
use support::{GIB, ProgramMachine};
use tempfile::TempDir;
use testvm::vm::Qmp;
use vmm::{MachineSpec, MemoryDeviceConfig, Size, VirtioTransport};

fn moat(virtio_transport: VirtioTransport) -> Vec<Answered> {
    let device =
        MemoryDeviceConfig { requested: Size(REQUESTED), ..MemoryDeviceConfig::new(REGION) };
    let machine = ProgramMachine::start_as(|usual| MachineSpec {
        transport: virtio_transport,
        virtio_mem: vec![device],
        ..usual
    })
    .unwrap();
    let mut program = machine.program;
    let registers = match virtio_transport {
        VirtioTransport::Mmio => mmio_registers(),
        VirtioTransport::Pci => pci_registers(&mut program, MOAT_ECAM),
    };
    let control = machine.machine.control();
    let request = Box::new(move |bytes| {
        control.resize("mem0", bytes).unwrap();
    });
    interview(Device { program, registers, request })
}

/// QEMU's process. Dropping it ends it.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu() -> Vec<Answered> {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    bare_metal::write_elf(&path("program.elf"));
    let listener = UnixListener::bind(path("agent")).unwrap();
    let process = Command::new("qemu-system-x86_64")
        .args(["-machine", "q35,memory-backend=ram", "-accel", "kvm", "-cpu", "host", "-smp", "1"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"])
        .args(["-m", "512M,maxmem=4G,slots=1"])
        .arg("-object")
        .arg(format!(
            "memory-backend-file,id=ram,share=on,size=512M,mem-path={}",
            path("ram").display()
        ))
        .arg("-kernel")
        .arg(path("program.elf"))
        .args(["-serial", "null"])
        .args(["-chardev", &format!("socket,id=agent,path={}", path("agent").display())])
        .args(["-serial", "chardev:agent"])
        .args(["-object", &format!("memory-backend-ram,id=memory,size={REGION}")])
        .arg("-device")
        .arg(format!(
            "virtio-mem-pci,id=mem0,memdev=memory,memaddr={},requested-size={REQUESTED}",
            4 * GIB
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(path("errors")).unwrap())
        .spawn()
        .expect("QEMU is installed");
    let mut process = Qemu(process);
    let (input, output) = (process.0.stdin.take().unwrap(), process.0.stdout.take().unwrap());
    let said = || fs::read_to_string(path("errors")).unwrap();
    let mut qmp = Qmp::open(input, output).unwrap_or_else(|error| panic!("{error}: {}", said()));
    // Where QEMU greets, it has connected its serial ports before.
    let mut program = Program::connect(listener.accept().unwrap().0, &path("ram"));
    let registers = pci_registers(&mut program, Q35_ECAM);
    let request = Box::new(move |bytes: u64| {
        let property = "/machine/peripheral/mem0";
        let arguments = json!({"path": property, "property": "requested-size", "value": bytes});
        qmp.execute("qom-set", arguments).unwrap();
    });
    interview(Device { program, registers, request })
}

/// Row, question, what is wanted, and what the device says instead.
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
        let answers = moat(transport);
        assert!(answers.len() > 70, "{} answers", answers.len());
        assert_eq!(differences(&answers), Vec::<[String; 4]>::new(), "{transport:?}");
    }
}

#[test]
fn qemus_device_answers_otherwise_where_we_say_so_and_nowhere_else() {
    let version = Command::new("qemu-system-x86_64").arg("--version").output().unwrap().stdout;
    let version = String::from_utf8_lossy(&version);
    assert_eq!(differences(&qemu()), documented(), "{version}");
}
