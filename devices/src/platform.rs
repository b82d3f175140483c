//! The few registers by which a guest shuts down, resets or reports a panic: ACPI sleep and reset,
//! pvpanic, and the reset registers that PCs have had since before ACPI. Kernels access the latter
//! whether or not there is such a device, so they read as those of an idle one.

use std::sync::Arc;

use crate::bus::BusDevice;

/// What the guest requests of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlatformEvent {
    /// Enter ACPI state S5.
    PowerOff,
    /// Write to the ACPI reset register, or to an older one.
    Reset,
    /// The kernel reported a panic by pvpanic.
    Panicked,
}

/// Where [`PlatformEvent`]s go.
pub trait PlatformControl: Send + Sync {
    /// Receives `event`. Called on a vCPU's thread, so it must not wait for vCPUs.
    fn request(&self, event: PlatformEvent);
}

/// The sleep and reset registers of a hardware-reduced ACPI machine (ACPI 6.5, section 4.8.3).
pub struct PowerRegisters(Arc<dyn PlatformControl>);

impl PowerRegisters {
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 3;
    /// Offset of SLEEP_CONTROL_REG.
    pub const SLEEP_CONTROL: u16 = 0;
    /// Offset of SLEEP_STATUS_REG, which always reads 0: the machine never wakes from a sleep state.
    pub const SLEEP_STATUS: u16 = 1;
    /// Offset of RESET_REG.
    pub const RESET: u16 = 2;
    /// The value that resets the machine when it is written to RESET_REG.
    pub const RESET_VALUE: u8 = 1;
    /// SLP_TYP of S5, the only sleep state that is supported.
    pub const S5_SLEEP_TYPE: u8 = 5;

    const SLEEP_TYPE_SHIFT: u8 = 2;
    const SLEEP_ENABLE: u8 = 1 << 5;

    /// Registers that report to `control`.
    pub fn new(control: Arc<dyn PlatformControl>) -> Self {
        Self(control)
    }
}

impl BusDevice for PowerRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        const SLEEP_S5: u8 = PowerRegisters::SLEEP_ENABLE
            | PowerRegisters::S5_SLEEP_TYPE << PowerRegisters::SLEEP_TYPE_SHIFT;
        match (offset as u16, data) {
            (Self::SLEEP_CONTROL, [SLEEP_S5, ..]) => self.0.request(PlatformEvent::PowerOff),
            (Self::RESET, [Self::RESET_VALUE, ..]) => self.0.request(PlatformEvent::Reset),
            _ => {}
        }
    }
}

/// The pvpanic port (QEMU's `docs/specs/pvpanic.rst`; ACPI device `QEMU0001`).
pub struct Pvpanic(Arc<dyn PlatformControl>);

impl Pvpanic {
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 1;

    const PANICKED: u8 = 1 << 0;

    /// A port that reports to `control`.
    pub fn new(control: Arc<dyn PlatformControl>) -> Self {
        Self(control)
    }
}

impl BusDevice for Pvpanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(Self::PANICKED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.iter().any(|byte| byte & Self::PANICKED != 0) {
            self.0.request(PlatformEvent::Panicked);
        }
    }
}

/// The command and status register of a keyboard controller (Intel 8042). There is no keyboard.
pub struct KeyboardController(Arc<dyn PlatformControl>);

impl KeyboardController {
    /// The port.
    pub const PORT: u64 = 0x64;
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 1;

    /// Status: the output buffer and the input buffer are empty.
    const IDLE: u8 = 0;
    /// Commands that pulse output lines: those whose low bits are clear. Bit 0 is the reset line.
    const PULSE: u8 = 0xf0;
    const NOT_RESET: u8 = 1 << 0;

    /// A controller that reports to `control`.
    pub fn new(control: Arc<dyn PlatformControl>) -> Self {
        Self(control)
    }
}

impl BusDevice for KeyboardController {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(Self::IDLE);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let resets = |command: &u8| command & (Self::PULSE | Self::NOT_RESET) == Self::PULSE;
        if data.iter().any(resets) {
            self.0.request(PlatformEvent::Reset);
        }
    }
}

/// System Control Port A of the PS/2: another reset line, and the gate of address line 20 (A20).
pub struct SystemControlPortA {
    control: Arc<dyn PlatformControl>,
    value: u8,
}

impl SystemControlPortA {
    /// The port.
    pub const PORT: u64 = 0x92;
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 1;

    const RESET: u8 = 1 << 0;
    /// The gate is open, whatever is written: this machine never wraps addresses at 1 MiB.
    const A20_ENABLED: u8 = 1 << 1;

    /// A port that reports to `control`.
    pub fn new(control: Arc<dyn PlatformControl>) -> Self {
        Self { control, value: Self::A20_ENABLED }
    }
}

impl BusDevice for SystemControlPortA {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.value);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        for value in data {
            if value & !self.value & Self::RESET != 0 {
                self.control.request(PlatformEvent::Reset);
            }
            self.value = value | Self::A20_ENABLED;
        }
    }
}

/// The reset control register of Intel's chipsets (Intel I/O Controller Hub 10, section 13.7.5).
pub struct ResetControl {
    control: Arc<dyn PlatformControl>,
    value: u8,
}

impl ResetControl {
    /// The port.
    pub const PORT: u64 = 0xcf9;
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 1;

    /// Resets when it goes from 0 to 1.
    const RESET_CPU: u8 = 1 << 2;
    /// Selects the kind of reset. They are all the same here.
    const KINDS: u8 = 1 << 1 | 1 << 3;

    /// A register that reports to `control`.
    pub fn new(control: Arc<dyn PlatformControl>) -> Self {
        Self { control, value: 0 }
    }
}

impl BusDevice for ResetControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.value);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        for value in data {
            if value & !self.value & Self::RESET_CPU != 0 {
                self.control.request(PlatformEvent::Reset);
            }
            self.value = value & (Self::KINDS | Self::RESET_CPU);
        }
    }
}

/// A real-time clock that never has an update in progress, which a kernel would wait for. The ACPI
/// tables declare that there is no clock (CMOS_RTC_NOT_PRESENT).
pub struct AbsentClock;

impl AbsentClock {
    /// The first port.
    pub const PORT: u64 = 0x70;
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 2;
}

impl BusDevice for AbsentClock {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Requests(Mutex<Vec<PlatformEvent>>);

    impl PlatformControl for Requests {
        fn request(&self, event: PlatformEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn only_the_documented_values_are_requests() {
        let requests = Arc::new(Requests::default());
        let mut power = PowerRegisters::new(requests.clone());
        let mut pvpanic = Pvpanic::new(requests.clone());
        for value in 0..=u8::MAX {
            power.write(0, &[value]);
            power.write(1, &[value]);
            power.write(2, &[value]);
        }
        for value in [0, 2, 4] {
            pvpanic.write(0, &[value]);
        }
        pvpanic.write(0, &[1]);
        use PlatformEvent::*;
        assert_eq!(*requests.0.lock().unwrap(), [Reset, PowerOff, Panicked]);
    }

    /// How many resets are requested while `values` are written one after the other.
    fn resets<D: BusDevice>(
        device: impl FnOnce(Arc<dyn PlatformControl>) -> D,
        values: impl IntoIterator<Item = u8>,
    ) -> usize {
        let requests = Arc::new(Requests::default());
        let mut device = device(requests.clone());
        values.into_iter().for_each(|value| device.write(0, &[value]));
        let requests = requests.0.lock().unwrap();
        assert!(requests.iter().all(|request| *request == PlatformEvent::Reset));
        requests.len()
    }

    #[test]
    fn legacy_registers_reset_as_linux_and_others_use_them() {
        // `reboot=k`, native_machine_emergency_restart() of Linux 6.12; other commands do nothing.
        assert_eq!(resets(KeyboardController::new, [0xfe]), 1);
        assert_eq!(resets(KeyboardController::new, [0x20, 0x60, 0xaa, 0xd1, 0xdf, 0xff]), 0);
        // `reboot=p`: first the kind of reset, then the reset.
        assert_eq!(resets(ResetControl::new, [0x02, 0x06]), 1);
        assert_eq!(resets(ResetControl::new, [0x02, 0x0e]), 1);
        assert_eq!(resets(ResetControl::new, [0x02, 0x0a, 0x00]), 0);
        assert_eq!(resets(SystemControlPortA::new, [0x02, 0x03]), 1);
        assert_eq!(resets(SystemControlPortA::new, [0x02, 0x00, 0xfe]), 0);
    }

    #[test]
    fn legacy_registers_read_as_idle() {
        let control = Arc::new(Requests::default());
        let mut data = [0xa5];
        KeyboardController::new(control.clone()).read(0, &mut data);
        assert_eq!(data, [0], "the input buffer is empty");
        SystemControlPortA::new(control.clone()).read(0, &mut data);
        assert_eq!(data, [2], "address line 20 is enabled");
        AbsentClock.write(0, &[0x0a]);
        AbsentClock.read(1, &mut data);
        assert_eq!(data, [0], "no update is in progress");
    }
}
