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
    /// How often what vCPUs reach may have changed.
    changes: u64,
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
    /// How often what vCPUs reach may have changed by then.
    pub changes: u64,
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
        let changes = state.changes;
        Some(Entered { gate: self, vcpu, changes })
    }

    /// Takes all vCPUs out of KVM_RUN and keeps them out while the result lives.
    pub fn close(&self) -> Closed<'_> {
        let mut state = self.lock();
        state.closers += 1;
        state.changes += 1;
        state.inside.iter().flatten().for_each(|kicker| kicker.kick());
        while state.inside.iter().any(Option::is_some) {
            state = self.wait(state);
        }
        Closed(self)
    }

    /// Says that there is memory where there was none, to vCPUs that may just have been refused it.
    /// They are not taken out of KVM_RUN for that.
    pub fn announce_memory(&self) {
        self.lock().changes += 1;
    }

    /// How often what vCPUs reach may have changed so far: it was closed, or memory was announced.
    pub fn changes(&self) -> u64 {
        self.lock().changes
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
