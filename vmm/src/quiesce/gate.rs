//! Taking every vCPU out of KVM_RUN together, and letting them back in.
//!
//! A vCPU passes the gate on its way into KVM_RUN and on its way out. Closing the gate kicks those
//! inside and waits until all are out. A vCPU that is out may be doing anything else, such as
//! waiting for a device's lock that the closer holds: only guest code is stopped.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::kick::{self, Kicker};

#[derive(Default)]
struct State {
    /// How many [`Closed`] there are.
    closers: usize,
    /// The vCPUs in KVM_RUN.
    inside: Vec<Option<Kicker>>,
    ended: bool,
}

/// The gate of a virtual machine.
#[derive(Default)]
pub struct VcpuGate {
    state: Mutex<State>,
    changed: Condvar,
}

/// While this lives, no vCPU executes guest code.
pub struct Closed<'a>(&'a VcpuGate);

/// While this lives, a vCPU may be in KVM_RUN.
pub struct Entered<'a> {
    gate: &'a VcpuGate,
    vcpu: usize,
}

impl VcpuGate {
    /// A gate for `vcpus` vCPUs, open.
    pub fn new(vcpus: usize) -> Self {
        kick::install_handler();
        let state = State { inside: vec![None; vcpus], ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Lets the calling thread take `vcpu` into KVM_RUN, once the gate is open. None when the
    /// machine has ended.
    ///
    /// `kicker` is the thread's own.
    pub fn enter(&self, vcpu: usize, kicker: Kicker) -> Option<Entered<'_>> {
        let mut state = self.lock();
        while state.closers > 0 && !state.ended {
            state = self.wait(state);
        }
        if state.ended {
            return None;
        }
        kick::rearm();
        state.inside[vcpu] = Some(kicker);
        Some(Entered { gate: self, vcpu })
    }

    /// Takes all vCPUs out of KVM_RUN and keeps them out while the result lives.
    pub fn close(&self) -> Closed<'_> {
        let mut state = self.lock();
        state.closers += 1;
        // Whatever happens from here on, the gate opens again.
        let closed = Closed(self);
        state.inside.iter().flatten().for_each(|kicker| kicker.kick());
        while state.inside.iter().any(Option::is_some) {
            state = self.wait(state);
        }
        closed
    }

    /// Takes all vCPUs out of KVM_RUN, for good.
    pub fn end(&self) {
        self.lock().ended = true;
        drop(self.close());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.lock().closers -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.inside[self.vcpu] = None;
        if state.closers > 0 {
            self.gate.changed.notify_all();
        }
    }
}
