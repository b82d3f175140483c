//! A paused machine stands still, and loses nothing.

mod support;

use std::arch::x86_64::_rdtsc;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bare_metal::Program;
use bare_metal::virtio_mem::{Answer, Driver, PLUG, Request, UNPLUG};
use support::linux::{Linux, kernel, lasting_vcpus, machine};
use support::{GIB, MIB, ProgramMachine};
use testvm::vm::VmConfig;
use vmm::machine::{PauseError, RunState};
use vmm::{Ending, MachineControl, MachineSpec, MemoryDeviceConfig, OnReset, SerialEndpoint, Size};

/// Otherwise unused RAM, for processors to hammer.
const HAMMERED: u64 = 8 * MIB;
const HAMMERED_BYTES: u64 = 64 << 10;

fn device() -> MemoryDeviceConfig {
    MemoryDeviceConfig { requested: Size(64 * MIB), ..MemoryDeviceConfig::new(GIB) }
}

/// Has the three processors beside the first one count in memory.
fn hammer(program: &mut Program) {
    program.start_processors();
    for n in 0..3 {
        let address = HAMMERED + n * HAMMERED_BYTES;
        program.fill(address, HAMMERED_BYTES);
        program.hammer(n, address, HAMMERED_BYTES);
    }
}

fn rounds(program: &Program) -> [u64; 3] {
    [0, 1, 2].map(|n| program.hammer_rounds(n))
}

fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _rdtsc() }
}

fn state(control: &MachineControl) -> RunState {
    control.status().unwrap().state
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let mut vm = ProgramMachine::start(4, vec![]);
    let control = vm.machine.control();
    hammer(&mut vm.program);
    for n in 0..3 {
        vm.program.wait_for_hammer(n);
    }
    assert_eq!(state(&control), RunState::Running);
    // Pausing a paused machine changes nothing.
    for _ in 0..2 {
        assert_eq!(control.pause().unwrap().state, RunState::Paused);
    }
    let before = rounds(&vm.program);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(rounds(&vm.program), before);
    for _ in 0..2 {
        assert_eq!(control.resume().unwrap().state, RunState::Running);
    }
    for n in 0..3 {
        assert_eq!(vm.program.wait_for_hammer(n).errors, 0);
    }
    assert!(rounds(&vm.program).into_iter().zip(before).all(|(after, before)| after > before));
}

#[test]
fn a_guests_time_stamp_counter_does_not_jump() {
    let mut vm = ProgramMachine::start(1, vec![]);
    let control = vm.machine.control();
    for pause in [Duration::from_millis(200), Duration::from_secs(2)] {
        let (host_before, guest_before) = (host_tsc(), vm.program.read_tsc());
        control.pause().unwrap();
        let paused = host_tsc();
        thread::sleep(pause);
        let paused = host_tsc() - paused;
        control.resume().unwrap();
        let (guest_after, host_after) = (vm.program.read_tsc(), host_tsc());
        assert!(guest_after > guest_before);
        let (guest, host) = (guest_after - guest_before, host_after - host_before);
        assert!(guest < host - paused / 2, "{guest} of {host} cycles, {paused} of them paused");
    }
}

#[test]
fn requests_during_a_pause_are_carried_out_after_resume() {
    let mut vm = ProgramMachine::start(1, vec![device()]);
    let control = vm.machine.control();
    let mut driver = Driver::start(&mut vm.program, true);
    let plugs: Vec<Request> =
        (0..8).map(|n| Request { kind: PLUG, address: driver.block(n), blocks: 1 }).collect();
    driver.lay_out_requests(&vm.program, &plugs);
    control.pause().unwrap();
    let resizing = control.resize("mem0", 32 * MIB).unwrap();
    assert_eq!((resizing.device.requested, resizing.device.plugged), (32 * MIB, 0));
    let program = &mut vm.program;
    thread::scope(|scope| {
        // By a byte on a serial port, which waits there.
        let driver = &mut driver;
        let asked = scope.spawn(move || {
            driver.make_requests(program, 8);
            driver.answers(program, 8)
        });
        thread::sleep(Duration::from_millis(100));
        let device = &control.status().unwrap().memory_devices[0];
        assert_eq!((device.requests.plug, device.plugged), (0, 0));
        control.resume().unwrap();
        assert_eq!(asked.join().unwrap(), [Answer::Ack; 8]);
    });
    let device = &control.status().unwrap().memory_devices[0];
    assert_eq!((device.requested, device.plugged), (32 * MIB, 16 * MIB));
}

#[test]
fn a_machine_under_load_is_paused_and_resumed_200_times() {
    const REQUESTS: u16 = 64;
    let mut vm = ProgramMachine::start(4, vec![device()]);
    let control = vm.machine.control();
    let mut driver = Driver::start(&mut vm.program, true);
    hammer(&mut vm.program);
    let kinds = [PLUG, UNPLUG];
    let requests: Vec<Request> = (0..u64::from(REQUESTS))
        .map(|n| Request { kind: kinds[n as usize % 2], address: driver.block(n / 2), blocks: 1 })
        .collect();
    let pausing = control.clone();
    let program = &mut vm.program;
    thread::scope(|scope| {
        let paused = scope.spawn(move || {
            for _ in 0..200 {
                pausing.pause().unwrap();
                let before = pausing.status().unwrap();
                thread::yield_now();
                assert_eq!(pausing.status().unwrap(), before);
                pausing.resume().unwrap();
            }
        });
        while !paused.is_finished() {
            driver.lay_out_requests(program, &requests);
            driver.make_requests(program, REQUESTS);
            assert_eq!(driver.answers(program, REQUESTS), [Answer::Ack; REQUESTS as usize]);
        }
        paused.join().unwrap();
    });
    for n in 0..3 {
        assert_eq!(vm.program.wait_for_hammer(n).errors, 0);
    }
}

/// Keeps what a guest prints.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_output_is_lost_or_out_of_order() {
    let printed = Printed::default();
    let console =
        SerialEndpoint { name: "the test", input: None, output: Box::new(printed.clone()) };
    let mut vm = ProgramMachine::start_printing(|usual| usual, console).unwrap();
    let control = vm.machine.control();
    let text: Vec<u8> = (0..20_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    thread::scope(|scope| {
        let (program, text) = (&mut vm.program, &text);
        let printing = scope.spawn(move || program.print(text));
        while !printing.is_finished() {
            control.pause().unwrap();
            control.resume().unwrap();
        }
    });
    // The last of it is on its way, and arrives before a machine that is paused has ended.
    control.pause().unwrap();
    control.stop();
    assert_eq!(vm.machine.wait(), Ending::Stopped);
    assert_eq!(*printed.0.lock().unwrap(), text);
}

#[test]
fn a_paused_machine_ends_at_once_and_is_not_paused_any_more() {
    let mut vm = ProgramMachine::start(4, vec![device()]);
    let control = vm.machine.control();
    hammer(&mut vm.program);
    control.pause().unwrap();
    control.stop();
    assert_eq!(vm.machine.wait(), Ending::Stopped);
    assert_eq!(state(&control), RunState::Ended);
    assert!(matches!(control.pause(), Err(PauseError::NotRunning(_))));
    assert!(matches!(control.resume(), Err(PauseError::NotRunning(_))));
    // A paused machine also ends when it is dropped.
    let vm = ProgramMachine::start(1, vec![]);
    vm.machine.control().pause().unwrap();
    drop(vm.machine);
}

#[test]
fn a_machine_that_has_started_again_can_be_paused() {
    let vm = ProgramMachine::start_as(|usual| MachineSpec {
        on_reset: OnReset::Restart,
        virtio_mem: vec![device()],
        ..usual
    });
    let ProgramMachine { machine, mut program, .. } = vm.unwrap();
    let control = machine.control();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || machine.wait());
        for _ in 0..2 {
            control.pause().unwrap();
            control.resume().unwrap();
            program.reset();
            // The program is ready a moment before the machine is.
            while control.status().is_err() {
                thread::yield_now();
            }
        }
        control.pause().unwrap();
        assert_eq!(state(&control), RunState::Paused);
        control.stop();
        assert_eq!(waiting.join().unwrap(), Ending::Stopped);
    });
}

/// How long Linux says that it is up.
fn uptime(linux: &Linux) -> Duration {
    let uptime = linux.guest.read_text("/proc/uptime").unwrap();
    Duration::from_secs_f64(uptime.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn linux_notices_nothing_of_a_pause() {
    const PAUSE: Duration = Duration::from_secs(2);
    const COMPLAINTS: [&str; 5] =
        ["soft lockup", "clocksource", "stalls on CPU", "Watchdog", "Call Trace"];
    for (name, parameters) in [
        ("protected", ""),
        ("debian-6.12-cloud", "clocksource=kvm-clock"),
        ("debian-6.1-cloud", ""),
    ] {
        let vcpus = lasting_vcpus(2);
        let parameters = parameters.to_owned();
        let linux = Linux::boot(&VmConfig { vcpus, parameters, ..machine(&kernel(name), &[]) });
        let clocks = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let clock = linux.guest.read_text(clocks).unwrap();
        let log_end = linux.guest.log_end().unwrap();
        for _ in 0..2 {
            let (host_before, guest_before) = (Instant::now(), uptime(&linux));
            linux.control.pause().unwrap();
            let paused = Instant::now();
            thread::sleep(PAUSE);
            let paused = paused.elapsed();
            linux.control.resume().unwrap();
            let (guest_after, host) = (uptime(&linux), host_before.elapsed());
            let guest = guest_after - guest_before;
            assert!(
                guest < host - paused / 2,
                "{name} by {clock}: {guest:?} of {host:?}, {paused:?} of it paused"
            );
        }
        let log = linux.guest.kernel_log(log_end).unwrap();
        let complaint =
            log.iter().find(|record| COMPLAINTS.iter().any(|what| record.text.contains(what)));
        assert_eq!(complaint, None, "{name} by {clock}");
        linux.guest.power_off().unwrap();
        assert_eq!(linux.ending(), Ending::PowerOff, "{name}");
    }
}
