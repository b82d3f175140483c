//! QMP, by which a running QEMU is asked things: JSON, a line a message, over its standard streams.
//! QEMU's docs/interop/qmp-spec.rst.

use std::{
    io::{BufRead, BufReader, Write},
    process::{ChildStdin, ChildStdout},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The stream ended.
    #[error("QEMU has ended")]
    Ended,
    /// No answer.
    #[error("QEMU did not answer within {PATIENCE:?}")]
    NoAnswer,
    /// The answer is that it will not.
    #[error("QEMU refuses {0}")]
    Refused(String),
}

/// The stream, after the greeting.
pub struct Qmp {
    input: ChildStdin,
    messages: Receiver<Value>,
    /// Why the guest was shut down, once it has been.
    shutdown: Option<String>,
}

impl Qmp {
    /// Waits for the greeting, and answers it.
    pub fn open(input: ChildStdin, output: ChildStdout) -> Result<Self, QmpError> {
        let (sender, messages) = mpsc::channel();
        // A thread, because a pipe has no deadline. It ends with QEMU, or when nobody listens.
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            for message in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut qmp = Self { input, messages, shutdown: None };
        qmp.message(PATIENCE)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.input, "{request}").map_err(|_| QmpError::Ended)?;
        loop {
            let mut message = self.message(PATIENCE)?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                return Err(QmpError::Refused(format!("{command}: {}", error["desc"])));
            }
        }
    }

    /// Why the guest was shut down, in QEMU's word, if it is within this time.
    pub fn wait_for_shutdown(&mut self, patience: Duration) -> Result<Option<String>, QmpError> {
        let end = Instant::now() + patience;
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
    fn message(&mut self, patience: Duration) -> Result<Value, QmpError> {
        let message = self.messages.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => QmpError::NoAnswer,
            RecvTimeoutError::Disconnected => QmpError::Ended,
        })?;
        if message["event"] == "SHUTDOWN" {
            self.shutdown = message["data"]["reason"].as_str().map(str::to_owned);
        }
        Ok(message)
    }
}
