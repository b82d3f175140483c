//! Kicks a thread out of KVM_RUN, without a moment at which a kick can be lost.
//!
//! A signal alone would be lost if it came just before KVM_RUN. Its handler therefore also sets
//! `immediate_exit` in the vCPU's shared page, which KVM checks on entry
//! (Documentation/virt/kvm/api.rst, section 5).

use std::cell::Cell;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null in any other thread.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// The signal of a kick. It is not a real-time signal: those are queued, and sending one fails once the user
/// has RLIMIT_SIGPENDING of them queued. The kernel sends SIGURG only to a process that has asked for it
/// (socket(7)), and one too many does no harm.
pub const KICK: c_int = libc::SIGURG;

extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    // SAFETY: the pointer is null, or `KickTarget` set it and resets it before the page
    // is unmapped. The variable is the thread's own, and is a plain cell without destructor, so
    // reading it in a signal handler is sound.
    if let Some(immediate_exit) = unsafe { immediate_exit.as_ref() } {
        immediate_exit.store(1, Ordering::Relaxed);
    }
}

/// Installs the handler of the kick signal in this process.
pub fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Without SA_RESTART, so that the signal interrupts KVM_RUN.
        register_signal_handler(KICK, on_kick).expect("SIGURG can have a handler");
    });
}

/// Clears `immediate_exit` after a kick. Called by a vCPU's thread while no kick of it is under way.
pub fn rearm() {
    // SAFETY: as in `on_kick`.
    if let Some(immediate_exit) = unsafe { IMMEDIATE_EXIT.get().as_ref() } {
        immediate_exit.store(0, Ordering::Relaxed);
    }
}

/// Kicks one thread.
#[derive(Clone, Copy)]
pub struct Kicker(libc::pthread_t);

impl Kicker {
    /// Makes the thread leave KVM_RUN, or not enter it. The thread must still exist: the gate has the kicker
    /// only while the thread is inside.
    pub fn kick(self) {
        // SAFETY: the thread is between `enter` and the end of its `Entered`, so it exists.
        let result = unsafe { libc::pthread_kill(self.0, KICK) };
        assert_eq!(result, 0, "a signal that is not queued can be sent to a thread that exists");
    }
}

/// Lets kicks take the calling thread out of KVM_RUN, as long as this lives.
pub struct KickTarget {
    kicker: Kicker,
    // Belongs to its thread: neither `Send` nor `Sync`.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl KickTarget {
    /// The calling thread runs `vcpu`, which outlives the result.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        let immediate_exit: *const u8 = &vcpu.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.set(immediate_exit.cast());
        // This process may have been started with the signal blocked.
        unblock_signal(KICK).expect("a signal that exists can be unblocked");
        // SAFETY: asks for the calling thread's own id; nothing can go wrong.
        let kicker = Kicker(unsafe { libc::pthread_self() });
        Self { kicker, _not_send: std::marker::PhantomData }
    }

    /// Kicks this thread; for other threads.
    pub fn kicker(&self) -> Kicker {
        self.kicker
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}
