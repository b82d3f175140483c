//! moat as a process of its own, `moat run`, controlled over its API.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use vmm::{
    Ending, Enforcement, MachineStatus, MemoryDeviceConfig, OnReset, ProbeConfig, VirtioTransport,
    arch::x86_64::boot::BootProtocol,
    machine::Resizing,
    memory::{backing::Backing, host::HostMemoryConfig},
};

use super::{
    ConsoleText, MemoryDevice, MonitorProcess, RunningMachine, VmConfig, VmError,
    moat::bypass,
    process::{option, switch},
};

const MOAT: &str = "moat";

/// A `moat run` that runs. It ends when this is dropped.
pub(super) struct MoatProcess {
    process: MonitorProcess,
    /// The connection to its API, once it was needed.
    api: Mutex<Option<BufReader<UnixStream>>>,
}

impl MoatProcess {
    /// Starts one; returns the far end of its second serial port too.
    pub(super) fn start(config: &VmConfig) -> Result<(Self, UnixStream), VmError> {
        let arguments = arguments(config)?;
        let files = TempDir::with_prefix("moat-run-")?;
        let directory = files.path().to_owned();
        if !config.initrd.is_empty() {
            fs::write(directory.join("initramfs"), &config.initrd)?;
        }
        let process = MonitorProcess::start(MOAT, files, |command| {
            command.arg("run").arg("--kernel").arg(&config.kernel).args(arguments);
            if !config.initrd.is_empty() {
                command.args(["--initrd", "initramfs"]);
            }
            command
                .args(["--serial", "file:console", "--serial2", "unix:agent"])
                .args(["--api-socket", "api"])
                // Warnings about violations are not wanted here.
                .env("RUST_LOG", "error")
                .stdin(Stdio::null())
                .current_dir(directory);
        })?;
        let agent = process.connect(&process.path("agent"))?;
        Ok((Self { process, api: Mutex::new(None) }, agent))
    }

    /// One request and its answer, on a connection that stays open.
    fn request<T: DeserializeOwned>(&self, what: &str, body: &Value) -> Result<T, VmError> {
        // A thread that panicked during a request left at most an unread answer.
        let mut api = self.api.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = match &mut *api {
            Some(stream) => stream,
            none => none.insert(BufReader::new(self.process.connect(&self.process.path("api"))?)),
        };
        let (is_ok, answer) = exchange(stream, what, body)?;
        match serde_json::from_slice(&answer) {
            Ok(answer) if is_ok => Ok(answer),
            _ => Err(VmError::Api(format!("{what}: {}", String::from_utf8_lossy(&answer)))),
        }
    }
}

/// HTTP: whether the status is 200, and the answer's body.
fn exchange(
    stream: &mut BufReader<UnixStream>,
    what: &str,
    body: &Value,
) -> io::Result<(bool, Vec<u8>)> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let request = format!(
        "{what} HTTP/1.1\r\nhost: moat\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.get_mut().write_all(request.as_bytes())?;
    let mut status = String::new();
    stream.read_line(&mut status)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().map_err(io::Error::other)?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok((status.contains(" 200 "), answer))
}

impl RunningMachine for MoatProcess {
    fn memory_device(&self, name: &str) -> Result<MemoryDevice, VmError> {
        let status: MachineStatus = self.request("GET /machine", &Value::Null)?;
        MemoryDevice::of(status, name)
    }

    fn request(&self, name: &str, bytes: u64) -> Result<(), VmError> {
        let body = json!({ "requested": bytes });
        let _: Resizing = self.request(&format!("PUT /devices/{name}"), &body)?;
        Ok(())
    }

    fn process(&self) -> Option<&MonitorProcess> {
        Some(&self.process)
    }

    fn wait_for_end(&self, timeout: Duration) -> Option<Ending> {
        match self.process.wait(timeout) {
            Ok(None) => None,
            Ok(Some(status)) if status.success() => Some(Ending::PowerOff),
            Ok(Some(status)) => {
                Some(Ending::MachineError(format!("{status}: {}", self.process.ended())))
            }
            Err(error) => Some(Ending::MachineError(error.to_string())),
        }
    }

    fn console(&self) -> ConsoleText {
        ConsoleText::from(&self.process.read("console")[..])
    }
}

/// The options that describe the machine, but for its kernel, initramfs and serial ports.
fn arguments(config: &VmConfig) -> Result<Vec<String>, VmError> {
    let bypass = bypass(config)?;
    if config.protocol != BootProtocol::Auto
        || config.on_reset != OnReset::End
        || config.probes.iter().any(|probe| *probe != ProbeConfig::default())
        || !config.memory_devices.iter().all(has_plain_settings)
    {
        let what = "settings that are not passed to `moat run` yet";
        return Err(VmError::Unsupported { vmm: config.vmm, what });
    }
    let mut arguments = vec![
        format!("--cpus={}", config.vcpus),
        format!("--memory={}", config.memory),
        format!("--memory-backing={}", memory(&config.ram)),
        format!("--cmdline={}", config.command_line()),
    ];
    arguments.extend(config.memory_devices.iter().map(|device| {
        let MemoryDeviceConfig { size, requested, block_size, .. } = device;
        let memory = memory(&device.memory);
        format!("--virtio-mem=size={size},requested={requested},block-size={block_size},{memory}")
    }));
    arguments.extend(config.probes.iter().map(|_| "--probe".to_owned()));
    if config.virtio_transport == VirtioTransport::Pci {
        arguments.push("--transport=pci".to_owned());
    }
    if config.enforcement == Enforcement::Off {
        arguments.push("--enforce=off".to_owned());
    }
    if let Some(bypass) = bypass {
        arguments.push(format!("--iommu=virtio,bypass={}", switch(bypass)));
    }
    Ok(arguments)
}

/// Whether a device has no settings besides sizes, block size and memory.
fn has_plain_settings(device: &MemoryDeviceConfig) -> bool {
    let MemoryDeviceConfig { size, requested, block_size, memory, .. } = device.clone();
    let plain = MemoryDeviceConfig::new(size.0);
    *device == MemoryDeviceConfig { requested, block_size, memory, ..plain }
}

fn memory(config: &HostMemoryConfig) -> String {
    let backing = match &config.backing {
        Backing::Anonymous => "backing=anonymous".to_owned(),
        Backing::Memfd => "backing=memfd".to_owned(),
        Backing::Hugetlb2M => "backing=hugetlb-2m".to_owned(),
        Backing::Hugetlb1G => "backing=hugetlb-1g".to_owned(),
        Backing::File(path) => option("backing=file:", path),
    };
    let (huge_pages, prealloc) = (switch(config.huge_pages), switch(config.prealloc));
    let node = config.host_node.map(|node| format!(",host-node={node}")).unwrap_or_default();
    format!("{backing},huge-pages={huge_pages},prealloc={prealloc}{node}")
}
