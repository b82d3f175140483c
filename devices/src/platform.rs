//! The few registers by which a guest ends itself: ACPI sleep and reset, and pvpanic.

use std::sync::Arc;

use crate::bus::BusDevice;

/// What the guest asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlatformEvent {
    /// Enter ACPI state S5.
    PowerOff,
    /// Write to the ACPI reset register.
    Reset,
    /// The kernel panicked, and told pvpanic.
    Panicked,
}

/// Where [`PlatformEvent`]s go.
pub trait PlatformControl: Send + Sync {
    /// Takes note of `event`; called on a vCPU's thread, so it must not wait for vCPUs.
    fn request(&self, event: PlatformEvent);
}

/// The sleep and reset registers of a hardware-reduced ACPI machine (ACPI 6.5, section 4.8.3).
pub struct PowerRegisters(Arc<dyn PlatformControl>);

impl PowerRegisters {
    /// Number of I/O ports the device takes.
    pub const PORTS: u64 = 3;
    /// Offset of SLEEP_CONTROL_REG.
    pub const SLEEP_CONTROL: u16 = 0;
    /// Offset of SLEEP_STATUS_REG, which always reads 0: nothing here wakes.
    pub const SLEEP_STATUS: u16 = 1;
    /// Offset of RESET_REG.
    pub const RESET: u16 = 2;
    /// The value that RESET_REG wants.
    pub const RESET_VALUE: u8 = 1;
    /// SLP_TYP of S5, the only sleep state on offer.
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
    fn only_the_documented_values_end_the_guest() {
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
}
