//! moat beside QEMU: the same kernel and the same initramfs, on the same KVM, in the same minutes.
//!
//! `scripts/bench` builds all that is needed and runs this where KVM works. Every VMM is a process of
//! its own, started from its own binary (`moat run`, `qemu-system-x86_64`), and every guest has 1 vCPU
//! and 512 MiB. The VMMs take turns in every round, so that whatever else the host does meets them
//! alike. Nothing is asserted here: figures are for people to read, and a figure of one run on one
//! host says little without the ratio beside it.

mod contender;
mod control;
mod footprint;
mod report;
mod resize;
mod start;
mod vm;

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::Parser;
use lab::{initramfs::Initramfs, kernel::GuestKernel};
use tempfile::TempDir;

use contender::{Contender, Programs};
use report::Report;

/// Measures moat beside QEMU.
#[derive(Parser)]
struct Arguments {
    /// Kernel of the guests: a directory as scripts/guest-kernel makes it
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// moat
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_moat"))]
    moat: PathBuf,
    /// QEMU
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Where QEMU's firmware is, if not where it looks by itself
    #[arg(long, value_name = "DIR")]
    qemu_firmware: Option<PathBuf>,
    /// How often everything is measured, after a first time that does not count
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Where the samples are kept
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Given by cargo bench, and not by cargo test, which has nothing to find out here
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("measured by scripts/bench");
        return Ok(());
    }
    let kernel =
        arguments.kernel.context("name the guests' kernel, as scripts/bench does: --kernel DIR")?;
    let kernel = GuestKernel::open(&kernel)?;
    let modules = kernel.modules(&["virtio_pci", "virtio_mmio", "virtio_mem"])?;
    // Memory, wherever it can be had: a disk is not what is measured.
    let directory = TempDir::new()?;
    let initramfs = directory.path().join("initramfs");
    fs::write(&initramfs, Initramfs::new().with_modules(modules).build())?;
    let image = directory.path().join("bzImage");
    fs::copy(kernel.image(), &image)?;
    let programs = Programs {
        moat: arguments.moat,
        qemu: arguments.qemu,
        qemu_firmware: arguments.qemu_firmware,
        kernel: image,
        initramfs,
    };

    let mut report = Report::new(&programs, kernel.release(), arguments.runs)?;
    for round in 0..=arguments.runs {
        eprintln!("round {round} of {}: start and footprint", arguments.runs);
        let startable =
            [Contender::MOAT, Contender::MOAT_PCI, Contender::QEMU_MICROVM, Contender::QEMU_Q35];
        for contender in startable {
            let (vm, started) = start::measure(&programs, contender)?;
            let footprint = footprint::measure(&vm)?;
            // The first time warms the host's caches.
            if round > 0 {
                report.add(start::FIGURE, contender, started);
                report.add(footprint::TOTAL, contender, footprint.total);
                report.add(footprint::NOT_GUEST_MEMORY, contender, footprint.not_guest_memory);
            }
        }
    }
    let resizable = [Contender::MOAT, Contender::MOAT_UNENFORCED, Contender::QEMU_Q35];
    let mut subjects = Vec::new();
    for contender in resizable {
        eprintln!("booting {} to resize it", contender.name);
        subjects.push((contender, resize::Subject::boot(&programs, contender)?));
    }
    for round in 0..=arguments.runs {
        eprintln!("round {round} of {}: grow and shrink", arguments.runs);
        for (contender, subject) in &mut subjects {
            let (grown, shrunk) = (subject.grow()?, subject.shrink()?);
            if round > 0 {
                report.add(resize::GROW, *contender, grown);
                report.add(resize::SHRINK, *contender, shrunk);
            }
        }
    }
    for figure in [resize::GROW, resize::SHRINK] {
        report.not_supported(figure, Contender::QEMU_MICROVM);
    }
    println!("{report}");
    if let Some(path) = arguments.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
