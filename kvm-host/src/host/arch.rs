//! What depends on the emulated host's architecture.

/// An architecture that QEMU emulates with virtualisation.
pub struct Architecture {
    /// The program.
    pub qemu: &'static str,
    /// Its options for the machine and its CPU.
    pub machine: &'static [&'static str],
    /// The kernel's command line.
    pub command_line: &'static str,
    /// The kernel modules that the emulated host needs, KVM's among them.
    pub modules: &'static [&'static str],
}

/// A PC with AMD's virtualisation.
pub const X86_64: Architecture = Architecture {
    qemu: "qemu-system-x86_64",
    machine: &[
        "-machine",
        "q35",
        "-cpu",
        // max has AMD's virtualisation. Its xsave gives wrong results in a virtual machine inside, and its
        // virtual GIF makes such machines hang sooner; so both are off, as is what no processor has
        // without xsave. Its 40 bits of a physical address would be too few for a guest with a TiB of
        // memory to plug.
        "max,phys-bits=46,-vgif,-xsave,-xsaveopt,-xsavec,-xsaves,-xgetbv1,-pku,-mpx,-avx,-f16c,-fma,\
         -avx2,-vaes,-vpclmulqdq",
    ],
    // nokaslr and mitigations=off leave less code that the kernel patches while it runs on two CPUs. The
    // time stamp counter is this machine's own; Linux doubts it, and would read the slow HPET instead.
    command_line: "console=ttyS0 loglevel=4 panic=-1 nokaslr mitigations=off tsc=reliable",
    modules: &["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "kvm_amd"],
};
