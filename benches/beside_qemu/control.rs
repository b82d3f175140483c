//! Asking a VMM for another size of its virtio-mem device, and how far it is. Either way it is one
//! request and one answer on a connection that stays open.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// The device mem0 of a running VMM.
pub enum Control {
    /// moat's API: HTTP and JSON.
    Api(BufReader<UnixStream>),
    /// QEMU's machine protocol: JSON.
    Qmp(BufReader<UnixStream>),
}

impl Control {
    /// Speaks to QEMU, or to moat.
    pub fn new(stream: UnixStream, is_qemu: bool) -> anyhow::Result<Self> {
        let mut stream = BufReader::new(stream);
        if !is_qemu {
            return Ok(Self::Api(stream));
        }
        qmp(&mut stream, "qmp_capabilities", json!({}))?;
        Ok(Self::Qmp(stream))
    }

    /// Asks for `bytes` to be plugged.
    pub fn request(&mut self, bytes: u64) -> anyhow::Result<()> {
        match self {
            Self::Api(stream) => http(stream, "PUT /devices/mem0", &json!({ "requested": bytes })),
            Self::Qmp(stream) => qmp(stream, "qom-set", property("requested-size", Some(bytes))),
        }?;
        Ok(())
    }

    /// How many bytes are plugged.
    pub fn plugged(&mut self) -> anyhow::Result<u64> {
        let plugged = match self {
            Self::Api(stream) => {
                http(stream, "GET /machine", &Value::Null)?["memory_devices"][0]["plugged"].take()
            }
            Self::Qmp(stream) => qmp(stream, "qom-get", property("size", None))?,
        };
        plugged.as_u64().with_context(|| format!("{plugged} is no plugged size"))
    }
}

fn property(name: &str, value: Option<u64>) -> Value {
    let mut arguments = json!({ "path": "/machine/peripheral/mem0", "property": name });
    if let Some(value) = value {
        arguments["value"] = value.into();
    }
    arguments
}

fn qmp(stream: &mut BufReader<UnixStream>, name: &str, arguments: Value) -> anyhow::Result<Value> {
    writeln!(stream.get_mut(), "{}", json!({ "execute": name, "arguments": arguments }))?;
    // The greeting and events may come first.
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let mut message: Value = serde_json::from_str(&line).context("QEMU is gone")?;
        if let Some(value) = message.get_mut("return") {
            return Ok(value.take());
        }
        if let Some(error) = message.get("error") {
            bail!("{name}: {error}");
        }
    }
}

fn http(stream: &mut BufReader<UnixStream>, what: &str, body: &Value) -> anyhow::Result<Value> {
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
                length = value.parse()?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    if !status.contains(" 200 ") {
        bail!("{what}: {} {}", status.trim_end(), String::from_utf8_lossy(&body));
    }
    Ok(serde_json::from_slice(&body)?)
}
