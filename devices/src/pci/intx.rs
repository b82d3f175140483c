//! INTx: four level-triggered lines that all functions share (PCI Express Base 6.0, section 6.1.2).

use std::sync::{Arc, Mutex};

use super::InterruptLine;
use crate::lock;

/// The pin that a function interrupts with (section 7.5.1.1.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum InterruptPin {
    /// INTA, the only choice of a device with one function.
    A = 1,
    /// INTB.
    B,
    /// INTC.
    C,
    /// INTD.
    D,
}

/// A line that is asserted while at least one pin on it is.
pub(super) struct SharedLine {
    line: Arc<dyn InterruptLine>,
    asserting: Mutex<usize>,
}

impl SharedLine {
    pub(super) fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self { line, asserting: Mutex::new(0) }
    }

    fn assert(&self) {
        let mut asserting = lock(&self.asserting);
        *asserting += 1;
        if *asserting == 1 {
            self.line.set_level(true);
        }
    }

    fn deassert(&self) {
        let mut asserting = lock(&self.asserting);
        *asserting -= 1;
        if *asserting == 0 {
            self.line.set_level(false);
        }
    }
}

/// A function's INTx pin, which its device model drives.
#[derive(Default)]
pub struct IntxPin {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    level: bool,
    permitted: bool,
    driving: bool,
    line: Option<Arc<SharedLine>>,
}

impl State {
    fn update(&mut self) {
        let drive = self.level && self.permitted;
        if let Some(line) = &self.line
            && drive != self.driving
        {
            self.driving = drive;
            if drive { line.assert() } else { line.deassert() }
        }
    }
}

impl IntxPin {
    /// Sets Interrupt Status, and drives the line unless Interrupt Disable or MSI-X forbids it.
    /// The level stays until the next call.
    pub fn set_level(&self, level: bool) {
        let mut state = lock(&self.state);
        state.level = level;
        state.update();
    }

    /// Interrupt Status: the level that the device has set, whether or not it drives the line.
    pub(super) fn level(&self) -> bool {
        lock(&self.state).level
    }

    pub(super) fn permit(&self, permitted: bool) {
        let mut state = lock(&self.state);
        state.permitted = permitted;
        state.update();
    }

    pub(super) fn connect(&self, line: Arc<SharedLine>) {
        lock(&self.state).line = Some(line);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Line(AtomicBool);

    impl InterruptLine for Line {
        fn set_level(&self, asserted: bool) {
            assert_ne!(self.0.swap(asserted, Ordering::Relaxed), asserted, "the same level twice");
        }
    }

    #[test]
    fn a_line_is_asserted_while_one_permitted_pin_is() {
        let line = Arc::new(Line::default());
        let shared = Arc::new(SharedLine::new(Arc::clone(&line) as _));
        let [one, other] = [(); 2].map(|()| {
            let pin = IntxPin::default();
            pin.connect(Arc::clone(&shared));
            pin.permit(true);
            pin
        });
        let level = || line.0.load(Ordering::Relaxed);
        one.set_level(true);
        one.set_level(true);
        other.set_level(true);
        one.set_level(false);
        assert!(level());
        other.permit(false);
        assert!(!level());
        assert!(other.level(), "Interrupt Status does not depend on Interrupt Disable");
        other.permit(true);
        assert!(level());
        other.set_level(false);
        assert!(!level());
    }
}
