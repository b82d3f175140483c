//! moat beside QEMU: the same kernel and the same initramfs, on the same KVM, in the same minutes.
//!
//! `scripts/bench` builds all that is needed and runs this where KVM works. Every VMM is a process of
//! its own, started from its own binary (`moat run`, `qemu-system-x86_64`: the first in PATH),
//! and every guest has 1 vCPU and 512 MiB, unless a section says otherwise. The VMMs take turns in every
//! round, so that other load on the host affects all of them. Nothing is asserted here: figures are for
//! people to read, and a figure of one run on one host means little without the ratio beside it.

mod backings;
mod bare_metal_vm;
mod footprint;
mod iommu;
mod large_region;
mod monitor;
mod report;
mod requests;
mod resize;
mod start;
mod withdrawal;

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use testvm::{initramfs::Initramfs, kernel::GuestKernel};

use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

use monitor::Guests;
use report::{Report, host_is_emulated};

/// Measures moat beside QEMU.
#[derive(Parser)]
struct Arguments {
    /// Kernel of the guests: a directory as scripts/guest-kernel makes it
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// Number of measured rounds, after a warm-up round
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Measure this section only; may be repeated
    #[arg(long, value_enum, value_name = "SECTION")]
    only: Vec<Section>,
    /// Write all samples to this file
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Given by cargo bench and not by cargo test, under which nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured together.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Section {
    /// From process start to /init, and memory that a VM costs
    Start,
    /// How long Linux takes to grow and to shrink
    Resize,
    /// virtio-mem requests
    Requests,
    /// The same in a region of 1 TiB
    LargeRegion,
    /// UNPLUG of memory that the guest has written, by its backing
    Backings,
    /// The first access to unplugged memory, by the number of vCPUs
    Withdrawal,
    /// virtio-iommu requests, and DMA through it
    Iommu,
}

impl Section {
    /// Whether guests poll for a device's answers, as the bare-metal guest does, and Linux's driver of
    /// virtio-iommu. These sections come last.
    fn has_polling_guests(self) -> bool {
        !matches!(self, Self::Start | Self::Resize)
    }
}

/// Keeps this program, and whatever it starts from now on, on one CPU.
///
/// A guest that polls keeps its vCPU busy while it waits for a device. The CPUs of an emulated host take
/// turns of some milliseconds on a real one, and a thread woken on another CPU would wait for its turn.
fn share_one_cpu() -> anyhow::Result<()> {
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one).context("cannot stay on one CPU")
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing is measured here; run scripts/bench");
        return Ok(());
    }
    let kernel =
        arguments.kernel.context("name the guests' kernel, as scripts/bench does: --kernel DIR")?;
    let kernel = GuestKernel::open(&kernel)?;
    let modules = kernel.modules(&[
        "virtio_pci",
        "virtio_mmio",
        "virtio_mem",
        "virtio_rng",
        "vfio_pci",
        "vfio_iommu_type1",
    ])?;
    // In memory where /tmp is a tmpfs: the disk is not to be measured.
    let directory = TempDir::new()?;
    let image = directory.path().join("bzImage");
    fs::copy(kernel.image(), &image)?;
    let bare_metal = directory.path().join("program");
    bare_metal::write_elf(&bare_metal);
    let initramfs = Initramfs::new().with_modules(modules).build();
    let guests = Guests { kernel: image, initramfs, program: bare_metal };

    let mut report = Report::new(kernel.release(), arguments.runs)?;
    for section in Section::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(section) {
            continue;
        }
        let measure = match section {
            Section::Start => start::section,
            Section::Resize => resize::section,
            Section::Requests => requests::section,
            Section::LargeRegion => large_region::section,
            Section::Backings => backings::section,
            Section::Withdrawal => withdrawal::section,
            Section::Iommu => iommu::section,
        };
        if section.has_polling_guests() && host_is_emulated() {
            share_one_cpu()?;
        }
        measure(&guests, arguments.runs, &mut report)?;
    }
    println!("{report}");
    if let Some(path) = arguments.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
