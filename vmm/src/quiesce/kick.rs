//! Kicking a thread out of KVM_RUN, with no moment at which a kick can be lost.
//!
//! A signal alone would be lost if it came just before KVM_RUN. Its handler therefore also sets
//! `immediate_exit` in the vCPU's shared page, which KVM looks at on its way in
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

/// A kick. Of real-time signals there may be no more than the host lets a user have waiting
/// (RLIMIT_SIGPENDING), so one may fail; of others there is one or none. Nobody sends this one to a
/// process that has not asked for it (socket(7)), and it would do no harm.
pub const KICK: c_int = libc::SIGURG;

extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    // SAFETY: the pointer is null, or `KickTarget` put it there and takes it away before the
    // page goes. The variable is the thread's own, and is a plain cell without destructor, so
    // reading it in a signal handler is sound.
    if let Some(immediate_exit) = unsafe { immediate_exit.as_ref() } {
        immediate_exit.store(1, Ordering::Relaxed);
    }
}

/// Makes the kick signal known to this process.
pub fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Without SA_RESTART: the point is to interrupt.
        register_signal_handler(KICK, on_kick).expect("any signal but two takes a handler");
    });
}

/// Takes back what a kick left behind; called by a vCPU's thread, of which no kick is under way.
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
    /// Makes the thread leave KVM_RUN, or not enter it. The thread must still exist, which the
    /// gate knows: it has the kicker only while the thread is inside.
    pub fn kick(self) {
        // SAFETY: the thread is between `enter` and the end of its `Entered`, so it exists.
        let result = unsafe { libc::pthread_kill(self.0, KICK) };
        assert_eq!(result, 0, "a thread that exists takes a signal that needs no room");
    }
}

/// Makes the calling thread one that a kick takes out of KVM_RUN, as long as this lives.
pub struct KickTarget {
    kicker: Kicker,
    // A thread's own: neither `Send` nor `Sync`.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl KickTarget {
    /// The calling thread runs `vcpu`, which outlives the result.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        let immediate_exit: *const u8 = &vcpu.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.set(immediate_exit.cast());
        // Whoever started this process may have blocked it.
        unblock_signal(KICK).expect("a signal that exists can be unblocked");
        // SAFETY: asks for the calling thread's own id; nothing can go wrong.
        let kicker = Kicker(unsafe { libc::pthread_self() });
        Self { kicker, _not_send: std::marker::PhantomData }
    }

    /// What others kick the thread with.
    pub fn kicker(&self) -> Kicker {
        self.kicker
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}
