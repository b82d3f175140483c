//! QMP, by which a running QEMU is controlled: JSON, a line a message. QEMU's
//! docs/interop/qmp-spec.rst.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A socket takes no timeout of zero.
const SHORTEST: Duration = Duration::from_millis(1);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The stream ended.
    #[error("QEMU has ended")]
    Ended,
    /// No answer.
    #[error("QEMU did not answer within {TIMEOUT:?}")]
    NoAnswer,
    /// The answer is an error.
    #[error("QEMU refuses {0}")]
    Refused(String),
}

/// The stream, after the greeting.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    /// The part of the next message that has come.
    line: Vec<u8>,
    /// Why the guest was shut down, once it has been.
    shutdown: Option<String>,
}

impl Qmp {
    /// Waits for the greeting, and answers it.
    pub(super) fn open(stream: UnixStream) -> Result<Self, QmpError> {
        let mut qmp = Self { stream: BufReader::new(stream), line: Vec::new(), shutdown: None };
        qmp.message(TIMEOUT)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let request = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.stream.get_mut().write_all(request.as_bytes()).map_err(|_| QmpError::Ended)?;
        loop {
            let mut message = self.message(TIMEOUT)?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                return Err(QmpError::Refused(format!("{command}: {}", error["desc"])));
            }
        }
    }

    /// Why the guest was shut down, in QEMU's word, if that happens within this time.
    pub(super) fn wait_for_shutdown(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<String>, QmpError> {
        let end = Instant::now() + timeout;
        while self.shutdown.is_none() {
            match self.message(end.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(QmpError::NoAnswer) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(self.shutdown.clone())
    }

    /// The next message, events included.
    fn message(&mut self, timeout: Duration) -> Result<Value, QmpError> {
        use io::ErrorKind::{TimedOut, WouldBlock};
        let timeout = Some(timeout.max(SHORTEST));
        self.stream.get_ref().set_read_timeout(timeout).map_err(|_| QmpError::Ended)?;
        match self.stream.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => {}
            // The part of a line that has come is kept for the next call.
            Err(error) if matches!(error.kind(), TimedOut | WouldBlock) => {
                return Err(QmpError::NoAnswer);
            }
            Ok(_) | Err(_) => return Err(QmpError::Ended),
        }
        let message: Value = serde_json::from_slice(&self.line).unwrap_or_default();
        self.line.clear();
        if message["event"] == "SHUTDOWN" {
            self.shutdown = message["data"]["reason"].as_str().map(str::to_owned);
        }
        Ok(message)
    }
}
