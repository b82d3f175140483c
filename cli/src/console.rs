//! The far end of the guest's console: this terminal, a file, or a socket.

use std::fs::File;
use std::io::{self, Read, Stdin, Stdout, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rustix::termios::{self, OptionalActions, OutputModes, Termios};
use vmm::SerialEndpoint;

use crate::arguments::SerialTarget;

/// A console, wired up. Dropping it puts everything back as it was.
pub struct Console {
    _raw_mode: Option<RawMode>,
    _socket: Option<SocketFile>,
}

/// Wires a console to `target`. `on_escape` is called when the user types the escape key.
pub fn open(
    target: &SerialTarget,
    on_escape: Box<dyn Fn() + Send>,
) -> anyhow::Result<(SerialEndpoint, Console)> {
    match target {
        SerialTarget::Terminal => {
            let raw_mode = RawMode::enter(io::stdin())?;
            let input: Box<dyn Read + Send> = match &raw_mode {
                Some(_) => Box::new(EscapeFilter::new(io::stdin(), on_escape)),
                None => Box::new(io::stdin()),
            };
            let endpoint = SerialEndpoint {
                input: Some(input),
                output: Box::new(StdoutUnbuffered(io::stdout())),
            };
            Ok((endpoint, Console { _raw_mode: raw_mode, _socket: None }))
        }
        SerialTarget::File(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot write the console to {}", path.display()))?;
            let endpoint = SerialEndpoint { input: None, output: Box::new(file) };
            Ok((endpoint, Console { _raw_mode: None, _socket: None }))
        }
        SerialTarget::Unix(path) => {
            let (endpoint, socket) = listen(path)?;
            Ok((endpoint, Console { _raw_mode: None, _socket: Some(socket) }))
        }
    }
}

/// The terminal in raw mode, so that every key is the guest's.
struct RawMode {
    stdin: Stdin,
    before: Termios,
}

impl RawMode {
    /// None when standard input is no terminal.
    fn enter(stdin: Stdin) -> io::Result<Option<Self>> {
        if !termios::isatty(&stdin) {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Lines of our own still end where they should.
        raw.output_modes |= OutputModes::OPOST;
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(&self.stdin, OptionalActions::Now, &self.before);
    }
}

struct StdoutUnbuffered(Stdout);

impl Write for StdoutUnbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Ctrl-A, which starts a command to us.
const ESCAPE: u8 = 0x01;

/// Keys on their way to the guest, but for those that are meant for us: Ctrl-A x, Ctrl-A Ctrl-A.
struct EscapeFilter<R> {
    source: R,
    on_escape: Box<dyn Fn() + Send>,
    escaped: bool,
}

impl<R> EscapeFilter<R> {
    fn new(source: R, on_escape: Box<dyn Fn() + Send>) -> Self {
        Self { source, on_escape, escaped: false }
    }

    /// What of a key goes to the guest.
    fn filter(&mut self, key: u8) -> Option<u8> {
        match (std::mem::take(&mut self.escaped), key) {
            (true, b'x') => {
                (self.on_escape)();
                None
            }
            (true, key) => Some(key),
            (false, ESCAPE) => {
                self.escaped = true;
                None
            }
            (false, key) => Some(key),
        }
    }
}

impl<R: Read> Read for EscapeFilter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.source.read(buffer)?;
            let mut kept = 0;
            for index in 0..length {
                if let Some(key) = self.filter(buffer[index]) {
                    buffer[kept] = key;
                    kept += 1;
                }
            }
            // Nothing kept is not the end of input.
            if kept > 0 || length == 0 {
                return Ok(kept);
            }
        }
    }
}

/// A socket's name in the file system, removed in the end.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves one client after the other. Output is lost while there is none.
fn listen(path: &Path) -> anyhow::Result<(SerialEndpoint, SocketFile)> {
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot serve the console on {}", path.display()))?;
    let client = Arc::new(Mutex::new(None));
    let input = SocketInput { listener, client: Arc::clone(&client), current: None };
    let endpoint =
        SerialEndpoint { input: Some(Box::new(input)), output: Box::new(SocketOutput(client)) };
    Ok((endpoint, SocketFile(path.into())))
}

/// How long a client may take to read before it loses what it was to be sent.
const WRITE_PATIENCE: Duration = Duration::from_secs(1);

type Client = Arc<Mutex<Option<UnixStream>>>;

struct SocketInput {
    listener: UnixListener,
    client: Client,
    current: Option<UnixStream>,
}

impl Read for SocketInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(stream) = &mut self.current else {
                let (stream, _) = self.listener.accept()?;
                // A client that does not read must not keep the machine from ending.
                stream.set_write_timeout(Some(WRITE_PATIENCE))?;
                *self.client.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(stream.try_clone()?);
                self.current = Some(stream);
                continue;
            };
            match stream.read(buffer) {
                Ok(length) if length > 0 => return Ok(length),
                // The client is gone; the next one may come.
                _ => {
                    self.current = None;
                    *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
            }
        }
    }
}

struct SocketOutput(Client);

impl Write for SocketOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(client) => client.write(bytes),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_escape_key_is_ours_and_every_other_the_guests() {
        let escapes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&escapes);
        let on_escape = Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let keys = &b"a\x01\x01b\x03\x01xc\x01q"[..];
        let mut kept = Vec::new();
        EscapeFilter::new(keys, on_escape).read_to_end(&mut kept).unwrap();
        assert_eq!(kept, b"a\x01b\x03cq");
        assert_eq!(escapes.load(Ordering::Relaxed), 1);
    }
}
