//! `moat resize`.

use std::process::ExitCode;

use hyper::Method;
use vmm::Size;
use vmm::api::ResizeRequest;
use vmm::machine::Resizing;

use crate::arguments::ResizeArguments;
use crate::client;
use crate::messages::print_message;
use crate::output::answer;

pub fn run(arguments: &ResizeArguments) -> anyhow::Result<ExitCode> {
    let id = &arguments.device;
    anyhow::ensure!(
        !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric()),
        "{id:?} is not a device; the first virtio-mem device is mem0"
    );
    let request = ResizeRequest { requested: arguments.size.0 };
    let path = format!("/devices/{id}");
    let Resizing { device, warning } =
        client::request(&arguments.api_socket, Method::PUT, &path, Some(&request))?;
    let (requested, plugged) = (Size(device.requested), Size(device.plugged));
    answer(format_args!("{id}: requested {requested}, plugged {plugged}"))?;
    if let Some(warning) = warning {
        print_message(format_args!("warning: {warning}"));
    }
    Ok(ExitCode::SUCCESS)
}
