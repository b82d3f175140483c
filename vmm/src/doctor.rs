//! Whether this machine's KVM can run an unmodified kernel: tested by running a few instructions that
//! every kernel uses and that a para-virtual KVM does not support.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{io, iter};

use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::Serialize;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch::x86_64::boot::{Entry, EntryMode};
use crate::arch::x86_64::cpuid::CpuidTemplate;
use crate::arch::x86_64::layout;
use crate::arch::x86_64::registers::{self, UncachedMemory};
use crate::kvm::{self, KvmError, VcpuError};
use crate::memory::MemoryError;
use crate::memory::backing::{Backing, KeptFile};
use crate::memory::host::HostMemory;
use crate::memory::slots::{MemorySlots, SlotError};
use crate::quiesce::{KickTarget, VcpuGate};
use crate::threads::{self, Role};

/// The result of the test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Whether an unmodified kernel can be expected to run.
    pub usable: bool,
    /// Why, or why not, in one sentence.
    pub reason: String,
}

impl From<Result<(), Unfit>> for Diagnosis {
    fn from(result: Result<(), Unfit>) -> Self {
        match result {
            Ok(()) => {
                let reason = "this machine's KVM runs unmodified kernels".into();
                Self { usable: true, reason }
            }
            Err(unfit) => Self { usable: false, reason: unfit.to_string() },
        }
    }
}

/// Why an unmodified kernel cannot be expected to run.
#[derive(Debug, Error)]
enum Unfit {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("/dev/kvm refuses to {attempt}: {error}")]
    Refused { attempt: &'static str, error: kvm_ioctls::Error },
    #[error(transparent)]
    Cpuid(#[from] VcpuError),
    #[error("/dev/kvm refuses a vCPU's state: {0}")]
    State(VcpuError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("this machine's KVM cannot {step} ({failure}), so no unmodified kernel runs on it")]
    Program { step: Step, failure: Failure },
}

/// How the test program failed.
#[derive(Debug, PartialEq, Eq, Error)]
enum Failure {
    #[error("the result was wrong")]
    WrongResult,
    /// KVM_RUN returned in an unexpected way.
    #[error("{0}")]
    Exit(String),
    #[error("it did not finish within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("its thread panicked")]
    ThreadPanicked,
}

/// What the program does, in order. It reports each step that worked through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    LongMode = 1,
    Breakpoint = 2,
    CompareExchange = 3,
    ExtendedState = 4,
    PageTableChange = 5,
}

impl Step {
    const ALL: [Self; 5] = [
        Self::LongMode,
        Self::Breakpoint,
        Self::CompareExchange,
        Self::ExtendedState,
        Self::PageTableChange,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LongMode => "run 64-bit kernel-mode code",
            Self::Breakpoint => "deliver int3 through an interrupt descriptor table",
            Self::CompareExchange => "execute lock cmpxchg16b",
            Self::ExtendedState => "save and restore state with xsave and xrstor",
            Self::PageTableChange => "follow a change of a page table",
        })
    }
}

const CODE: GuestAddress = layout::HIGH_MEMORY_START;
const INTERRUPT_TABLE: GuestAddress = GuestAddress(0x3000);
const MEMORY_BYTES: u64 = 8 << 20;
const REPORT_PORT: u16 = 0xf0;
/// Written instead of a step when one gave a wrong result.
const WRONG_RESULT: u8 = 0xff;
/// Much longer than a few instructions take, even where everything is emulated.
const TIMEOUT: Duration = Duration::from_secs(20);

// Runs at `CODE` with the first GiB mapped onto itself, page directory at 0xb000.
std::arch::global_asm!(
    ".pushsection .rodata",
    "moat_doctor_code:",
    "    mov al, 1",
    "    out 0xf0, al",
    // int3, whose handler sets rbx.
    "    xor ebx, ebx",
    "    int3",
    "    cmp ebx, 0x33",
    "    jne 2f",
    "    mov al, 2",
    "    out 0xf0, al",
    // 16 bytes of zeros at 0x200000 become rcx:rbx.
    "    mov edi, 0x200000",
    "    xor eax, eax",
    "    xor edx, edx",
    "    mov ebx, 0x1111",
    "    mov ecx, 0x2222",
    "    lock cmpxchg16b [rdi]",
    "    jnz 2f",
    "    cmp qword ptr [rdi + 8], 0x2222",
    "    jne 2f",
    "    mov al, 3",
    "    out 0xf0, al",
    // Where the processor has xsave: CR4.OSFXSR and CR4.OSXSAVE; XCR0 = x87 and SSE. xmm0 goes to
    // memory and comes back.
    "    mov eax, 1",
    "    cpuid",
    "    bt ecx, 26",
    "    jnc 4f",
    "    mov rax, cr4",
    "    or eax, 0x40200",
    "    mov cr4, rax",
    "    xor ecx, ecx",
    "    xor edx, edx",
    "    mov eax, 3",
    "    xsetbv",
    "    mov esi, 0x1234567",
    "    movd xmm0, esi",
    "    mov ebp, 0x201000",
    "    xsave [rbp]",
    "    pxor xmm0, xmm0",
    "    mov eax, 3",
    "    xor edx, edx",
    "    xrstor [rbp]",
    "    movd eax, xmm0",
    "    cmp eax, esi",
    "    jne 2f",
    "4:  mov al, 4",
    "    out 0xf0, al",
    // Maps 4 MiB to what 0x200000 maps: copies page-directory entry 1 (0x200000) to entry 2 (4 MiB).
    "    mov edi, 0x400000",
    "    cmp qword ptr [rdi], 0",
    "    jne 2f",
    "    mov rax, [0xb008]",
    "    mov [0xb010], rax",
    "    invlpg [rdi]",
    "    cmp qword ptr [rdi], 0x1111",
    "    jne 2f",
    "    mov al, 5",
    "    out 0xf0, al",
    "2:  mov al, 0xff",
    "    out 0xf0, al",
    "3:  hlt",
    "    jmp 3b",
    "moat_doctor_breakpoint:",
    "    mov ebx, 0x33",
    "    iretq",
    "moat_doctor_end:",
    ".popsection",
);

unsafe extern "C" {
    static moat_doctor_code: u8;
    static moat_doctor_breakpoint: u8;
    static moat_doctor_end: u8;
}

/// The program's bytes, and the offset of its int3 handler.
fn program() -> (&'static [u8], u64) {
    let code = &raw const moat_doctor_code;
    let length = (&raw const moat_doctor_end).addr() - code.addr();
    // SAFETY: both symbols are labels in one section that is never written, the second after the
    // first, so everything between them is initialised and lives as long as the program.
    let bytes = unsafe { std::slice::from_raw_parts(code, length) };
    (bytes, ((&raw const moat_doctor_breakpoint).addr() - code.addr()) as u64)
}

/// Tests this machine's KVM.
pub fn examine() -> Diagnosis {
    try_program().into()
}

fn try_program() -> Result<(), Unfit> {
    let kvm = kvm::open()?;
    let refused = |attempt| move |error| Unfit::Refused { attempt, error };
    let vm = Arc::new(kvm.create_vm().map_err(refused("create a virtual machine"))?);
    vm.set_tss_address(layout::KVM_TSS).map_err(refused("take an address for its TSS"))?;
    vm.create_irq_chip().map_err(refused("create interrupt controllers"))?;
    let slots = MemorySlots::new(Arc::clone(&vm));
    let config = Backing::Anonymous.into();
    let mut file = KeptFile::default();
    let memory = HostMemory::map(GuestAddress(0), MEMORY_BYTES, &config, &mut file)?;
    let _slot = slots.add(&memory, 0..memory.size())?;
    let cpuid = CpuidTemplate::new(&kvm, 1)?.for_vcpu(0)?;
    let vcpu = vm.create_vcpu(0).map_err(refused("create a vCPU"))?;
    vcpu.set_cpuid2(&cpuid).map_err(refused("take a CPUID"))?;
    prepare(&vcpu, &memory).map_err(Unfit::State)?;
    run(vcpu)
}

fn prepare(vcpu: &VcpuFd, memory: &HostMemory) -> Result<(), VcpuError> {
    let guest = GuestMemoryMmap::from_arc_regions(vec![memory.mapping()])
        .expect("one region is sorted and disjoint");
    let mode = EntryMode::Linux64 { zero_page: layout::ZERO_PAGE };
    registers::set_up(
        vcpu,
        &guest,
        &UncachedMemory::default(),
        Some(&Entry { address: CODE, mode }),
    )?;
    let (code, breakpoint) = program();
    guest.write_slice(code, CODE)?;
    // A 64-bit interrupt gate: selector 0x10, present, type 0xe.
    let handler = CODE.0 + breakpoint;
    let low = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    const BREAKPOINT_VECTOR: u64 = 3;
    guest.write_obj(low, GuestAddress(INTERRUPT_TABLE.0 + BREAKPOINT_VECTOR * 16))?;
    guest.write_obj(handler >> 32, GuestAddress(INTERRUPT_TABLE.0 + BREAKPOINT_VECTOR * 16 + 8))?;
    let mut sregs = vcpu.get_sregs().map_err(VcpuError::ioctl("KVM_GET_SREGS"))?;
    sregs.idt.base = INTERRUPT_TABLE.0;
    sregs.idt.limit = (BREAKPOINT_VECTOR * 16 + 15) as u16;
    vcpu.set_sregs(&sregs).map_err(VcpuError::ioctl("KVM_SET_SREGS"))
}

/// Runs the program until its last step has worked.
fn run(mut vcpu: VcpuFd) -> Result<(), Unfit> {
    let gate = Arc::new(VcpuGate::new(1));
    let ended = Arc::clone(&gate);
    let program = move |passed: &AtomicUsize| {
        let target = KickTarget::new(&mut vcpu);
        let exits = iter::from_fn(|| {
            let entered = gate.enter(0, target.kicker())?;
            let exit = vcpu.run();
            drop(entered);
            Some(Exit::from(exit))
        });
        step_through(exits, passed)
    };
    watch(TIMEOUT, program, || ended.end())
}

/// Runs the program in a thread of its own. Calls `end` to end it when it is done or `timeout` is over. The
/// program counts the steps that have worked.
fn watch(
    timeout: Duration,
    program: impl FnOnce(&AtomicUsize) -> Result<(), Failure> + Send + 'static,
    end: impl FnOnce(),
) -> Result<(), Unfit> {
    let passed = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = mpsc::channel();
    let thread_passed = Arc::clone(&passed);
    let thread = threads::spawn(Role::Doctor, move || {
        // Fails only if the receiver has timed out, and the result is not needed.
        let _ = sender.send(program(&thread_passed));
    });
    let thread = thread.map_err(Unfit::Thread)?;
    let result = match receiver.recv_timeout(timeout) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Failure::Timeout(timeout)),
        Err(RecvTimeoutError::Disconnected) => Err(Failure::ThreadPanicked),
    };
    end();
    let _ = thread.join();
    result.map_err(|failure| {
        let passed = passed.load(Ordering::Acquire);
        Unfit::Program { step: Step::ALL[passed.min(Step::ALL.len() - 1)], failure }
    })
}

/// How KVM_RUN returned.
#[derive(Debug, PartialEq, Eq)]
enum Exit {
    /// The program reported a step.
    Report(u8),
    /// By a kick or another signal.
    Interrupted,
    /// In any other way.
    Unexpected(String),
}

impl From<Result<VcpuExit<'_>, kvm_ioctls::Error>> for Exit {
    fn from(exit: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Self {
        match exit {
            Ok(VcpuExit::IoOut(REPORT_PORT, &[report])) => Self::Report(report),
            Err(error) if error.errno() == libc::EINTR => Self::Interrupted,
            Ok(exit) => Self::Unexpected(format!("{exit:?}")),
            Err(error) => Self::Unexpected(error.to_string()),
        }
    }
}

/// Follows the program until its last step has worked.
fn step_through(exits: impl Iterator<Item = Exit>, passed: &AtomicUsize) -> Result<(), Failure> {
    for exit in exits {
        match exit {
            Exit::Report(WRONG_RESULT) => return Err(Failure::WrongResult),
            Exit::Report(step) => passed.store(step.into(), Ordering::Release),
            Exit::Interrupted => {}
            Exit::Unexpected(exit) => return Err(Failure::Exit(exit)),
        }
        if passed.load(Ordering::Acquire) == Step::PageTableChange as usize {
            return Ok(());
        }
    }
    Err(Failure::Exit("it was ended".into()))
}

#[cfg(test)]
#[path = "doctor_test.rs"]
mod tests;
