//! A VM in which the bare-metal guest drives a virtio-mem device: no time of an operating system is
//! measured.
//!
//! The guest makes a batch of requests by itself, each when the one before is answered, and polls
//! the used ring. The clock is the host's, and starts and stops with a byte on a serial
//! port. The time for an empty batch is measured with each batch and subtracted.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bare_metal::{
    Program,
    virtio_mem::{Answer, Driver, Request},
};

use tempfile::TempDir;
use testvm::vm::{self, RunningMachine, VmConfig};
use vmm::MemoryDeviceConfig;

use crate::monitor::{Guests, Monitor};

/// Far more than any monitor needs to start a program that is a few pages long.
const START: Duration = Duration::from_secs(120);

/// A VM whose driver has plugged nothing yet.
pub struct BareMetalVm {
    pub program: Program,
    pub driver: Driver,
    _machine: Box<dyn RunningMachine>,
    _directory: TempDir,
}

impl BareMetalVm {
    /// Starts it.
    pub fn start(
        guests: &Guests,
        monitor: Monitor,
        vcpus: u32,
        device: MemoryDeviceConfig,
    ) -> anyhow::Result<Self> {
        let directory = TempDir::new()?;
        let ram = directory.path().join("ram");
        let config = VmConfig { vcpus, ..monitor.bare_metal(guests, &ram, device) };
        let (machine, stream) = vm::start(&config)?;
        stream.set_read_timeout(Some(START))?;
        let mut program = Program::connect(stream, &ram);
        let registers = monitor.registers(&mut program);
        let driver = Driver::start_on(&mut program, registers, true)
            .context("the device does not take UNPLUGGED_INACCESSIBLE")?;
        Ok(Self { program, driver, _machine: machine, _directory: directory })
    }

    /// Requests of one kind, each for `bytes` from a block of `firsts` on.
    pub fn requests(
        &self,
        kind: u64,
        firsts: impl Iterator<Item = u64>,
        bytes: u64,
    ) -> Vec<Request> {
        let blocks = (bytes / self.driver.block_size) as u16;
        firsts.map(|first| Request { kind, address: self.driver.block(first), blocks }).collect()
    }

    /// Microseconds that a request takes. All of them have to be acknowledged.
    pub fn clock(&mut self, requests: &[Request]) -> anyhow::Result<f64> {
        let mut total = Duration::ZERO;
        for batch in requests.chunks(Driver::MOST_REQUESTS) {
            let count = batch.len() as u16;
            self.driver.lay_out_requests(&self.program, batch);
            let nothing = self.clock_batch(0);
            total += self.clock_batch(count).saturating_sub(nothing);
            let answers = self.driver.answers(&self.program, count);
            let refused = answers.iter().position(|answer| *answer != Answer::Ack);
            ensure!(
                refused.is_none(),
                "request {:?} of {batch:x?} was not acknowledged: {answers:?}",
                refused
            );
        }
        Ok(microseconds(total) / requests.len() as f64)
    }

    /// How long the first `count` of the requests take that are laid out.
    fn clock_batch(&mut self, count: u16) -> Duration {
        let start = Instant::now();
        self.driver.make_requests(&mut self.program, count);
        start.elapsed()
    }

    /// Microseconds from the host's byte to the guest's, with nothing to do.
    pub fn clock_nothing(&mut self) -> f64 {
        microseconds(self.clock_batch(0))
    }
}

/// A duration in microseconds.
pub fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
