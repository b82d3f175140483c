//! What a VM costs its host in memory, booted and idle at /init: the resident pages of the VMM's
//! process.
//!
//! The guest accesses the same memory under each VMM. A VMM adds its own code and data, what its
//! firmware accesses, and the unused rest of every huge page that the host allocates for the guest.

use std::fs;

use anyhow::Context;

use crate::report::{Figure, Unit};

pub const TOTAL: Figure = Figure::new("resident memory, idle at /init", Unit::Mebibytes);
pub const NOT_GUEST_MEMORY: Figure = Figure::new("of it not guest memory", Unit::Mebibytes);

/// RAM of every guest.
const RAM_MEBIBYTES: f64 = 512.0;

/// MiB.
#[derive(Default)]
pub struct Footprint {
    pub total: f64,
    pub not_guest_memory: f64,
}

/// The footprint of a monitor's process as it is now.
pub fn measure(process: u32) -> anyhow::Result<Footprint> {
    let path = format!("/proc/{process}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse(&text).with_context(|| format!("{path} does not have its documented form"))
}

/// Sums up smaps. A mapping at least as large as the guest's RAM is the guest's RAM.
fn parse(smaps: &str) -> Option<Footprint> {
    let mut footprint = Footprint::default();
    let mut is_guest_memory = false;
    for line in smaps.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let mebibytes = || Some(value.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0);
        match name {
            "Size" => is_guest_memory = mebibytes()? >= RAM_MEBIBYTES,
            "Rss" => {
                footprint.total += mebibytes()?;
                if !is_guest_memory {
                    footprint.not_guest_memory += mebibytes()?;
                }
            }
            _ => {}
        }
    }
    Some(footprint)
}
