//! `moat resize`.

use std::process::ExitCode;

use hyper::Method;
use vmm::MemoryDeviceStatus;
use vmm::api::ResizeRequest;

use crate::arguments::ResizeArguments;
use crate::client;
use crate::output::answer;
use crate::size::Size;

pub fn run(arguments: &ResizeArguments) -> anyhow::Result<ExitCode> {
    let id = &arguments.device;
    anyhow::ensure!(
        !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric()),
        "{id:?} is no device; the first virtio-mem device is mem0"
    );
    let request = ResizeRequest { requested: arguments.size.0 };
    let path = format!("/devices/{id}");
    let device: MemoryDeviceStatus =
        client::request(&arguments.api_socket, Method::PUT, &path, Some(&request))?;
    let (requested, plugged) = (Size(device.requested), Size(device.plugged));
    answer(format_args!("{id}: requested {requested}, plugged {plugged}"))?;
    Ok(ExitCode::SUCCESS)
}
