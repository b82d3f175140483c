//! Taking every vCPU out of KVM_RUN together, and letting them back in.
//!
//! A vCPU passes the gate on its way into KVM_RUN and on its way out. Closing the gate kicks those
//! inside and waits until all are out. A vCPU that is out may be doing anything else, such as
//! waiting for a device's lock that the closer holds: only guest code is stopped.
//!
//! [`VcpuGate::hold`] waits for more: every vCPU is done with its exit and waits at the gate.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::kick::{self, Kicker};

/// Where a vCPU's thread is.
#[derive(Clone, Copy)]
enum Place {
    /// Out of KVM_RUN, and busy.
    Outside,
    /// At the closed gate.
    Waiting,
    /// In KVM_RUN.
    Inside(Kicker),
    /// It has ended.
    Gone,
}

struct State {
    /// How many [`Closed`] and holds there are.
    closers: usize,
    vcpus: Vec<Place>,
    ended: bool,
}

impl State {
    fn is_anybody_inside(&self) -> bool {
        self.vcpus.iter().any(|place| matches!(place, Place::Inside(_)))
    }

    fn is_everybody_waiting(&self) -> bool {
        self.vcpus.iter().all(|place| matches!(place, Place::Waiting | Place::Gone))
    }

    /// Lets nobody in, and kicks who is inside.
    fn close(&mut self) {
        self.closers += 1;
        for place in &self.vcpus {
            if let Place::Inside(kicker) = place {
                kicker.kick();
            }
        }
    }
}

/// The gate of a virtual machine.
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
        let state = State { closers: 0, vcpus: vec![Place::Outside; vcpus], ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Lets the calling thread take `vcpu` into KVM_RUN, once the gate is open. None when the
    /// machine has ended.
    ///
    /// `kicker` is the thread's own.
    pub fn enter(&self, vcpu: usize, kicker: Kicker) -> Option<Entered<'_>> {
        let mut state = self.lock();
        while state.closers > 0 && !state.ended {
            state.vcpus[vcpu] = Place::Waiting;
            self.changed.notify_all();
            state = self.wait(state);
        }
        if state.ended {
            return None;
        }
        kick::rearm();
        state.vcpus[vcpu] = Place::Inside(kicker);
        Some(Entered { gate: self, vcpu })
    }

    /// The thread of `vcpu` ends, and will not be back.
    pub fn leave(&self, vcpu: usize) {
        self.lock().vcpus[vcpu] = Place::Gone;
        self.changed.notify_all();
    }

    /// Takes all vCPUs out of KVM_RUN and keeps them out while the result lives.
    pub fn close(&self) -> Closed<'_> {
        let mut state = self.lock();
        // Whatever happens from here on, the gate opens again.
        state.close();
        let closed = Closed(self);
        while state.is_anybody_inside() {
            state = self.wait(state);
        }
        closed
    }

    /// Takes all vCPUs out of KVM_RUN, and waits until each is done with its exit. They stay out until
    /// [`Self::release`]. False, and nothing to be released, if the machine has ended.
    pub fn hold(&self) -> bool {
        let mut state = self.lock();
        state.close();
        while !state.ended && !state.is_everybody_waiting() {
            state = self.wait(state);
        }
        let ended = state.ended;
        drop(state);
        if ended {
            self.release();
        }
        !ended
    }

    /// Undoes one [`Self::hold`].
    pub fn release(&self) {
        self.lock().closers -= 1;
        self.changed.notify_all();
    }

    /// Takes all vCPUs out of KVM_RUN, for good.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
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
        self.0.release();
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.vcpus[self.vcpu] = Place::Outside;
        if state.closers > 0 {
            self.gate.changed.notify_all();
        }
    }
}
