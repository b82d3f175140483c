//! The agent in a real guest, without moat's own machine: QEMU emulates the computer and has a
//! virtio-mem device of its own. What goes wrong here is the guest side's, not the machine's.
//!
//! `cargo test --release -p lab --test agent_on_qemu -- --ignored`, with kernels that
//! scripts/guest-kernel has fetched.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lab::{
    guest::{
        Denial, End, Errno, Guest, GuestError, Level, LogRecord, Mapping, Observe, OpenFlags,
        Process, Protection, Sharing, Signal, Width,
    },
    initramfs::Initramfs,
    kernel::GuestKernel,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Where the region of the virtio-mem device is.
const REGION: u64 = 4 << 30;
const REGION_SIZE: u64 = 1 << 30;
const REQUESTED: u64 = 256 * MIB;

const BOOT: Duration = Duration::from_secs(120);

/// A machine that ends with the test.
struct Qemu {
    process: Child,
    qmp: BufReader<UnixStream>,
    directory: TempDir,
}

impl Qemu {
    fn start(initramfs: &Initramfs, command_line: &str) -> (Self, Guest) {
        let directory = TempDir::new().unwrap();
        let path = |name| directory.path().join(name).display().to_string();
        fs::write(path("initramfs"), initramfs.build()).unwrap();
        let agent = UnixListener::bind(path("agent")).unwrap();
        let qmp = UnixListener::bind(path("qmp")).unwrap();
        let process = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-cpu", "max", "-machine", "q35", "-smp", "2"])
            .args(["-nodefaults", "-nographic", "-m", "1G,maxmem=4G,slots=1"])
            .arg("-kernel")
            .arg(kernel().image())
            .args(["-initrd", &path("initramfs")])
            .args(["-append", &format!("console=ttyS0 panic=-1 {command_line}")])
            .args(["-serial", &format!("file:{}", path("console"))])
            .args(["-chardev", &format!("socket,id=agent,path={}", path("agent"))])
            .args(["-serial", "chardev:agent"])
            .args(["-qmp", &format!("unix:{}", path("qmp"))])
            .args(["-object", &format!("memory-backend-ram,id=backing,size={REGION_SIZE}")])
            .args(["-device", &format!(
                "virtio-mem-pci,id=mem0,memdev=backing,memaddr={REGION},requested-size={REQUESTED}"
            )])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 must be installed");
        let qmp = BufReader::new(qmp.accept().unwrap().0);
        let mut qemu = Self { process, qmp, directory };
        qemu.command("qmp_capabilities", json!({}));
        let guest = Guest::connect(agent.accept().unwrap().0, BOOT);
        let guest = guest.unwrap_or_else(|error| panic!("{error}\n{}", qemu.console()));
        (qemu, guest)
    }

    /// Asks the device for another size, and waits until it has it.
    fn resize(&mut self, bytes: u64) {
        let path = "/machine/peripheral/mem0";
        let (property, value) = ("requested-size", bytes);
        self.command("qom-set", json!({"path": path, "property": property, "value": value}));
        self.wait_for_size(bytes);
    }

    fn wait_for_size(&mut self, bytes: u64) {
        while self.message()["data"]["size"] != json!(bytes) {}
    }

    fn command(&mut self, name: &str, arguments: Value) {
        let command = json!({"execute": name, "arguments": arguments});
        writeln!(self.qmp.get_mut(), "{command}").unwrap();
        while self.message().get("return").is_none() {}
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).unwrap();
        let message: Value = serde_json::from_str(&line).expect("QEMU is there and speaks JSON");
        assert!(message.get("error").is_none(), "{message}");
        message
    }

    fn console(&self) -> String {
        fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.console());
        }
    }
}

fn kernel() -> GuestKernel {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels");
    let name = std::env::var("MOAT_TEST_KERNEL").unwrap_or("debian-6.1-cloud".to_owned());
    GuestKernel::open(&kernels.join(name)).unwrap()
}

fn initramfs() -> Initramfs {
    let modules = kernel().modules(&["virtio_pci", "virtio_mem"]).unwrap();
    Initramfs::new().with_modules(modules)
}

fn map(process: &Process, offset: u64, pages: u64) -> Result<Mapping, GuestError> {
    let mem = process.open("/dev/mem", OpenFlags::RDWR)?;
    mem.mmap(offset, pages * PAGE, Protection::ReadWrite, Sharing::Shared)
}

#[test]
#[ignore = "boots a guest under emulation"]
fn dev_mem_is_closed_and_mappings_are_torn_down_when_the_driver_comes() -> Result<(), GuestError> {
    let (mut qemu, guest) = Qemu::start(&initramfs(), "memhp_default_state=online_movable");
    assert_eq!(guest.kernel_release(), kernel().release());
    let last = REGION + REGION_SIZE - PAGE;

    // VM1, VM2, and VM13's control.
    let process = guest.spawn()?;
    let mem = process.open("/dev/mem", OpenFlags::RDWR)?;
    let first_held = map(&process, REGION, 1)?;
    let last_held = map(&process, last, 1)?;
    let straddling = map(&process, REGION - PAGE, 2)?;
    first_held.poke_u32(8, 0x1234_5678)?;
    assert_eq!(first_held.peek_u16(8)?, 0x5678);
    let other_process = guest.spawn()?;
    let copied = other_process
        .open("/dev/mem", OpenFlags::RDWR)?
        .mmap(REGION, PAGE, Protection::ReadWrite, Sharing::Private)?
        .in_process();
    copied.poke_u8(0, 0xaa)?;
    assert_eq!(copied.peek_u8(0)?, 0xaa);
    assert!(mem.read_at(REGION, 8).outcome()? == Errno::EFAULT);
    let init = process.open("/init", OpenFlags::RDONLY)?;
    let own_memory = process.open("/proc/self/mem", OpenFlags::RDONLY)?;
    assert_eq!(first_held.read_from(&init, 0, 0, 4)?, 4);
    assert_eq!(first_held.peek_u32(0)?, u32::from_le_bytes(*b"\x7fELF"));
    assert_eq!(own_memory.read_at(first_held.address(), 4)?, b"\x7fELF");

    let log_end = guest.log_end()?;
    guest.load_module("virtio_pci", "").outcome()?;
    guest.load_module("virtio_mem", "")?;
    assert!(guest.load_module("virtio_mem", "").outcome()? == Errno::EEXIST);
    let log = guest.kernel_log(log_end)?;
    assert!(log.iter().any(|record| record.text.contains("plugged size")), "{log:?}");
    qemu.wait_for_size(REQUESTED);
    let iomem = guest.iomem()?;
    assert_eq!(*iomem.at(last)[0].range.start(), REGION);
    assert_eq!(iomem.at(REGION).last().unwrap().name, "System RAM (virtio_mem)");

    // VM3, VM4, VM7.
    assert!(map(&process, REGION, 1).outcome()? == Errno::EPERM);
    assert!(map(&process, last, 1).outcome()? == Errno::EPERM);
    assert!(map(&process, REGION - PAGE, 2).outcome()? == Errno::EPERM);
    map(&process, REGION - PAGE, 1)?.munmap()?;
    map(&process, REGION + REGION_SIZE, 1)?.munmap()?;
    assert!(mem.read_at(REGION, 8).outcome()? == Errno::EPERM);
    assert!(mem.read_at(last, 8).outcome()? == Errno::EFAULT);

    // VM11, VM12, VM13.
    for _ in 0..2 {
        assert!(first_held.peek_u32(0).outcome()? == Denial::SIGBUS);
        assert!(last_held.poke_u64(0, 1).outcome()? == Denial::SIGBUS);
        assert!(straddling.peek_u8(PAGE).outcome()? == Denial::SIGBUS);
        straddling.peek_u8(0)?;
    }
    assert!(first_held.read_from(&init, 0, 0, 4).outcome()? == Errno::EFAULT);
    assert!(own_memory.read_at(first_held.address(), 4).outcome()? == Errno::EIO);
    assert!(copied.peek_u8(0).outcome()? == Denial::SIGBUS);
    assert!(matches!(copied.peek_u8(0), Err(GuestError::Ended { .. })));

    // VM15.
    qemu.resize(0);
    assert_eq!(guest.iomem()?.at(REGION).len(), 1);
    assert!(map(&process, REGION, 1).outcome()? == Errno::EPERM);
    guest.unload_module("virtio_mem")?;
    assert!(guest.iomem()?.at(REGION).is_empty());
    map(&process, REGION, 1)?.munmap()?;
    mem.read_at(REGION, 8)?;
    assert!(first_held.peek_u32(0).outcome()? == Denial::SIGBUS);
    guest.load_module("virtio_mem", "")?;
    assert!(map(&process, REGION, 1).outcome()? == Errno::EPERM);
    let grave = |record: &LogRecord| record.level <= Level::Error;
    assert!(!guest.kernel_log(log_end)?.iter().any(grave));

    guest.power_off()?;
    assert!(qemu.process.wait().unwrap().success());
    Ok(())
}

#[test]
#[ignore = "boots a guest under emulation"]
fn memory_keeps_its_contents_while_its_size_changes() -> Result<(), GuestError> {
    let (mut qemu, guest) = Qemu::start(&initramfs(), "memhp_default_state=online_movable");
    guest.load_module("virtio_pci", "").outcome()?;
    guest.load_module("virtio_mem", "")?;
    qemu.wait_for_size(REQUESTED);
    let info = guest.meminfo()?;
    assert!(info.total() > 1100 * MIB && info.available() < info.total());

    let process = guest.spawn()?;
    let memory = process.allocate(64 * MIB)?;
    memory.fill(1)?;
    process.start_hammer(2, MIB)?;
    qemu.resize(512 * MIB);
    qemu.resize(0);
    assert_eq!(memory.verify(1)?.wrong_words, 0);
    let report = process.stop_hammer()?;
    assert!(report.rounds > 0 && report.wrong_words == 0, "{report:?}");

    assert_eq!(memory.verify(2)?.wrong_words, 64 * MIB / 8);
    memory.poke_u8(5 * PAGE, 0)?;
    assert_eq!(memory.verify(1)?.wrong_words, 0, "a child's store is the child's own");
    memory.in_process().poke_u64(5 * PAGE, 0)?;
    assert_eq!(memory.verify(1)?.first_wrong, Some(memory.address() + 5 * PAGE));

    let greedy = guest.spawn()?;
    let error = (0..4).try_for_each(|seed| greedy.allocate(400 * MIB)?.fill(seed)).unwrap_err();
    assert!(
        matches!(error, GuestError::Ended { end: End::Killed(Signal::SIGKILL), .. }),
        "{error}"
    );
    assert_eq!(memory.verify(2)?.wrong_words, 64 * MIB / 8, "only the greedy one was killed");
    Ok(())
}

#[test]
#[ignore = "boots a guest under emulation"]
fn a_stuck_process_is_nobody_elses_problem() -> Result<(), GuestError> {
    let (_qemu, guest) = Qemu::start(&Initramfs::new(), "");
    let stuck = guest.spawn()?;
    guest.set_deadline(Duration::from_secs(2));
    // A reader waits at its end.
    assert!(matches!(stuck.read_file("/proc/kmsg"), Err(GuestError::NoAnswer { .. })));
    guest.set_deadline(Duration::from_secs(60));
    assert!(matches!(stuck.read_file("/proc/version"), Err(GuestError::Refused { .. })));
    assert!(guest.read_text("/proc/version")?.contains(guest.kernel_release()));
    stuck.clone().kill()?;
    assert!(matches!(stuck.read_file("/proc/version"), Err(GuestError::Ended { .. })));
    assert!(matches!(guest.read_file("/init"), Err(GuestError::Refused { .. })), "too long");
    assert!(matches!(guest.load_module("virtio", ""), Err(GuestError::Refused { .. })), "no index");
    Ok(())
}

#[test]
#[ignore = "boots a guest under emulation"]
fn files_ports_and_restarts() -> Result<(), GuestError> {
    let (mut qemu, guest) = Qemu::start(&Initramfs::new(), "");
    let process = guest.spawn()?;
    let spill = process.open("/tmp/spill", OpenFlags::RDWR | OpenFlags::CREAT)?;
    let data: Vec<u8> = (0..100_000_u32).map(|at| (at * 7919).to_le_bytes()[1]).collect();
    assert_eq!(spill.write_at(3, &data)?, 100_000);
    assert!(spill.read_at(3, 200_000)? == data);
    assert!(guest.read_file("/absent").outcome()? == Errno::ENOENT);
    assert!(guest.list_directory("/sys/bus/pci/devices")?.contains(&"0000:00:00.0".to_owned()));

    // The host bridge of this machine, by configuration mechanism 1 and by procfs.
    const PCIIOC_MMAP_IS_MEM: u32 = 0x5043_4902;
    process.write_port(0xcf8, Width::Long, 0x8000_0000)?;
    assert_eq!(process.read_port(0xcfc, Width::Long)?, 0x29c0_8086);
    assert_eq!(process.read_port(0xcfc, Width::Word)?, 0x8086);
    assert!(process.read_port(0xcfc, Width::Quad).is_err());
    let bridge = process.open("/proc/bus/pci/00/00.0", OpenFlags::RDWR)?;
    assert_eq!(bridge.ioctl(PCIIOC_MMAP_IS_MEM, 0)?, 0);

    guest.reboot()?;
    let guest = guest.wait_to_restart(BOOT)?;
    assert!(guest.read_file("/tmp/spill").outcome()? == Errno::ENOENT);
    guest.power_off()?;
    assert!(qemu.process.wait().unwrap().success());
    Ok(())
}

#[test]
#[ignore = "boots a guest under emulation"]
fn a_crash_starts_the_crash_kernel_with_an_agent_in_it() -> Result<(), GuestError> {
    let image = fs::read(kernel().image()).unwrap();
    let initramfs = initramfs()
        .with_file("crash-kernel", image)
        .with_file("crash-initramfs", initramfs().build());
    let (_qemu, guest) = Qemu::start(&initramfs, "crashkernel=192M");
    guest.load_crash_kernel("/crash-kernel", "/crash-initramfs", "console=ttyS0 nr_cpus=1")?;
    guest.crash()?;
    let guest = guest.wait_to_restart(BOOT)?;
    let vmcore = guest.spawn()?.open("/proc/vmcore", OpenFlags::RDONLY)?;
    assert_eq!(vmcore.read_at(0, 4)?, b"\x7fELF");
    Ok(())
}

#[test]
#[ignore = "boots a guest under emulation"]
fn lockdown_closes_dev_mem() -> Result<(), GuestError> {
    let (_qemu, guest) = Qemu::start(&initramfs(), "lockdown=integrity");
    assert!(guest.read_text("/sys/kernel/security/lockdown")?.contains("[integrity]"));
    let denied = guest.spawn()?.open("/dev/mem", OpenFlags::RDWR).outcome()?;
    assert!(denied == Errno::EPERM);
    Ok(())
}
