//! What a serial port of the guest is connected to: this terminal, a file, or a socket.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use log::warn;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::stdio;
use vmm::SerialEndpoint;
use vmm::socket::SocketFile;
use vmm::threads::{self, Role};

use crate::arguments::SerialTarget;
use crate::streams::Unbuffered;
use crate::terminal::{self, Newlines};

/// A connected serial port. Dropping it restores the terminal and removes the socket.
pub struct Console {
    /// Device and inode of the file that it writes to, if it is one.
    file: Option<(u64, u64)>,
    _terminal: Option<Terminal>,
    _socket: Option<SocketFile>,
}

impl Console {
    /// Whether both ports write to the same file.
    pub fn shares_file_with(&self, other: &Self) -> bool {
        self.file.is_some() && self.file == other.file
    }
}

/// Connects a serial port to `target`. `on_escape` is called when the user types Ctrl-A x.
pub fn open(
    target: &SerialTarget,
    on_escape: Box<dyn Fn() + Send>,
) -> anyhow::Result<(SerialEndpoint, Console)> {
    let mut console = Console { file: None, _terminal: None, _socket: None };
    let endpoint = match target {
        SerialTarget::Tty => {
            let input: Box<dyn Read + Send> = if terminal::attach(Newlines::Translated)? {
                console._terminal = Some(Terminal);
                Box::new(read_keys(on_escape)?)
            } else {
                Box::new(Unbuffered(stdio::stdin()))
            };
            let output = Box::new(Unbuffered(stdio::stdout()));
            SerialEndpoint { name: "standard output", input: Some(input), output }
        }
        SerialTarget::File(path) => {
            let failed = || format!("cannot write the console to {}", path.display());
            // Truncated now and opened for appending, since other processes may truncate it later.
            File::create(path).with_context(failed)?;
            let file = OpenOptions::new().append(true).open(path).with_context(failed)?;
            let metadata = file.metadata().with_context(failed)?;
            console.file = Some((metadata.dev(), metadata.ino()));
            SerialEndpoint { name: "its file", input: None, output: Box::new(file) }
        }
        SerialTarget::Unix(path) => {
            let failed = || format!("cannot serve the console on {}", path.display());
            let (listener, socket) = SocketFile::serve(path).with_context(failed)?;
            console._socket = Some(socket);
            listen(listener).with_context(failed)?
        }
    };
    Ok((endpoint, console))
}

/// Keeps the terminal in raw mode until it is dropped.
pub struct Terminal;

impl Drop for Terminal {
    fn drop(&mut self) {
        terminal::restore();
    }
}

/// Input on its way to the guest.
struct InputQueue {
    state: Mutex<InputState>,
    changed: Condvar,
    /// Signalled when there is room again.
    room: OwnedFd,
}

#[derive(Default)]
struct InputState {
    bytes: VecDeque<u8>,
    ended: bool,
}

impl InputQueue {
    /// The most bytes that wait for a guest that does not read.
    const CAPACITY: usize = 64 << 10;

    fn new() -> io::Result<Arc<Self>> {
        let room = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), room }))
    }

    fn lock(&self) -> MutexGuard<'_, InputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self) -> bool {
        self.lock().bytes.len() < Self::CAPACITY
    }

    fn push(&self, bytes: &[u8]) {
        self.lock().bytes.extend(bytes);
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// The guest's end of a queue.
struct QueueReader(Arc<InputQueue>);

impl Read for QueueReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        while state.bytes.is_empty() && !state.ended {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let was_full = state.bytes.len() >= InputQueue::CAPACITY;
        let length = state.bytes.read(buffer)?;
        drop(state);
        if was_full {
            // This fails only if it is signalled already.
            let _ = rustix::io::write(&self.0.room, &1_u64.to_ne_bytes());
        }
        Ok(length)
    }
}

/// Ctrl-A, which starts a command to moat.
const ESCAPE: u8 = 0x01;

/// Filters moat's own commands out of the keys for the guest: Ctrl-A x, and Ctrl-A Ctrl-A for one Ctrl-A.
struct EscapeFilter {
    on_escape: Box<dyn Fn() + Send>,
    escaped: bool,
}

impl EscapeFilter {
    fn new(on_escape: Box<dyn Fn() + Send>) -> Self {
        Self { on_escape, escaped: false }
    }

    /// What goes to the guest for a key.
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

/// Reads keys all the time, whether or not the guest does, since a command to moat may be among them.
pub fn read_keys(on_escape: Box<dyn Fn() + Send>) -> io::Result<impl Read + Send + use<>> {
    let queue = InputQueue::new()?;
    let reader = QueueReader(Arc::clone(&queue));
    let mut filter = EscapeFilter::new(on_escape);
    let pump = move || {
        let mut buffer = [0; 4096];
        let mut full = false;
        while let Ok(keys @ 1..) = next_keys(&mut buffer) {
            let keys = buffer[..keys].iter().filter_map(|key| filter.filter(*key));
            let keys: Vec<u8> = keys.collect();
            if keys.is_empty() {
            } else if queue.has_room() {
                queue.push(&keys);
                full = false;
            } else if !std::mem::replace(&mut full, true) {
                warn!("keys are dropped: the guest does not read them; Ctrl-A x ends it");
            }
        }
        queue.end();
    };
    threads::spawn(Role::Keys, pump)?;
    Ok(reader)
}

/// Waits for keys while this process is in the foreground. Returns 0 at the end.
fn next_keys(buffer: &mut [u8]) -> io::Result<usize> {
    /// There is no notification of coming to the foreground, so this polls.
    const INTERVAL: Duration = Duration::from_millis(250);
    loop {
        if !terminal::is_foreground() {
            thread::sleep(INTERVAL);
            continue;
        }
        terminal::enter_raw_mode();
        match rustix::io::read(stdio::stdin(), &mut *buffer) {
            Ok(length) => return Ok(length),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&stdio::stdin(), PollFlags::IN)], None)
                    .map(drop)
                    .or_else(|error| if error == Errno::INTR { Ok(()) } else { Err(error) })?;
            }
            // It is in the background now, or the terminal has gone.
            Err(Errno::IO) if !terminal::is_foreground() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Serves one client after the other. Output while there is none is kept for the next.
fn listen(listener: UnixListener) -> io::Result<SerialEndpoint> {
    listener.set_nonblocking(true)?;
    let queue = InputQueue::new()?;
    let client = Client::default();
    let output = Box::new(SocketOutput(Arc::clone(&client)));
    let input = Some(Box::new(QueueReader(Arc::clone(&queue))) as _);
    let server = SocketServer { listener, client, queue };
    threads::spawn(Role::ConsoleSocket, move || server.serve())?;
    Ok(SerialEndpoint { name: "its socket", input, output })
}

type Client = Arc<Mutex<Output>>;

/// Where output goes.
#[derive(Default)]
struct Output {
    client: Option<UnixStream>,
    /// The latest output while there is no client.
    kept: VecDeque<u8>,
}

impl Output {
    /// The most bytes that are kept.
    const CAPACITY: usize = 256 << 10;

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let excess = self.kept.len().saturating_sub(Self::CAPACITY);
        self.kept.drain(..excess);
    }
}

fn lock(client: &Client) -> MutexGuard<'_, Output> {
    client.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads input from clients, and detects that they disconnect, whether or not the guest reads.
struct SocketServer {
    listener: UnixListener,
    client: Client,
    queue: Arc<InputQueue>,
}

impl SocketServer {
    /// Delay before the next try after a client could not be accepted, as when this process has no descriptors
    /// left.
    const PAUSE: Duration = Duration::from_millis(100);

    fn serve(&self) {
        let mut refused = false;
        loop {
            match self.accept() {
                Ok(stream) => {
                    refused = false;
                    self.attend(&stream);
                    lock(&self.client).client = None;
                }
                Err(error) => {
                    if !std::mem::replace(&mut refused, true) {
                        warn!("the console cannot accept a client now: {error}");
                    }
                    thread::sleep(Self::PAUSE);
                }
            }
        }
    }

    fn accept(&self) -> io::Result<UnixStream> {
        wait_for(&mut [PollFd::new(&self.listener, PollFlags::IN)], None)?;
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        let for_output = stream.try_clone()?;
        loop {
            let mut output = lock(&self.client);
            if output.kept.is_empty() {
                output.client = Some(for_output);
                return Ok(stream);
            }
            let kept: Vec<u8> = std::mem::take(&mut output.kept).into();
            // More output may be kept meanwhile; the next iteration sends it.
            drop(output);
            send(&for_output, &mut &kept[..])?;
        }
    }

    /// Reads the client's input until it disconnects. A client that has only shut down its sending side still
    /// gets output.
    fn attend(&self, stream: &UnixStream) {
        let mut sends = true;
        loop {
            let wanted =
                if sends && self.queue.has_room() { PollFlags::IN } else { PollFlags::empty() };
            let mut events =
                [PollFd::new(stream, wanted), PollFd::new(&self.queue.room, PollFlags::IN)];
            if wait_for(&mut events, None).is_err() {
                return;
            }
            let [client, room] = events.map(|event| event.revents());
            if room.contains(PollFlags::IN) {
                let _ = rustix::io::read(&self.queue.room, &mut [0; 8]);
            }
            let has_left = client.intersects(PollFlags::HUP | PollFlags::ERR);
            if has_left || client.contains(PollFlags::IN) {
                sends &= self.take_input(stream, has_left);
            }
            if has_left {
                return;
            }
        }
    }

    /// Reads what has come: as much as there is room for, or all of it. False at the end of the input.
    fn take_input(&self, mut stream: &UnixStream, all: bool) -> bool {
        let mut buffer = [0; 4096];
        while all || self.queue.has_room() {
            match stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => self.queue.push(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// Sends everything to a client that reads. On an error `bytes` are what has not been sent.
fn send(mut client: &UnixStream, bytes: &mut &[u8]) -> io::Result<()> {
    /// How long the client may read nothing before the rest is dropped.
    const TIMEOUT: Duration = Duration::from_secs(1);
    while !bytes.is_empty() {
        match client.write(bytes) {
            Ok(written) => *bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut events = [PollFd::new(client, PollFlags::OUT)];
                if wait_for(&mut events, Some(TIMEOUT))? == 0 {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct SocketOutput(Client);

impl Write for SocketOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut output = lock(&self.0);
        let Some(client) = output.client.as_ref().map(UnixStream::try_clone).transpose()? else {
            output.keep(bytes);
            return Ok(bytes.len());
        };
        // The server needs the lock when the client disconnects.
        drop(output);
        let mut rest = bytes;
        match send(&client, &mut rest) {
            // The client has disconnected.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => lock(&self.0).keep(rest),
            result => result?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for `events`, and returns how many have come; 0 after `timeout`.
fn wait_for(events: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    loop {
        match poll(events, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tempfile::TempDir;

    #[test]
    fn ctrl_a_is_handled_here_and_every_other_key_goes_to_the_guest() {
        let escapes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&escapes);
        let on_escape = Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut filter = EscapeFilter::new(on_escape);
        let keys = b"a\x01\x01b\x03\x01xc\x01q";
        let kept: Vec<u8> = keys.iter().filter_map(|key| filter.filter(*key)).collect();
        assert_eq!(kept, b"a\x01b\x03cq");
        assert_eq!(escapes.load(Ordering::Relaxed), 1);
    }

    /// A console on a socket.
    fn socket() -> (TempDir, std::path::PathBuf, SerialEndpoint, Console) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("console");
        let (endpoint, console) = open(&SerialTarget::Unix(path.clone()), Box::new(|| {})).unwrap();
        (directory, path, endpoint, console)
    }

    fn read_exactly<const N: usize>(input: &mut dyn Read) -> [u8; N] {
        let mut bytes = [0; N];
        input.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn clients_come_and_go_while_the_guest_reads_nothing() {
        let (_directory, path, endpoint, _console) = socket();
        let more = vec![b'x'; InputQueue::CAPACITY + 1];
        for _ in 0..3 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(&more).unwrap();
        }
        // The fourth is served only when the others are known to have left.
        let mut client = UnixStream::connect(&path).unwrap();
        let mut input = endpoint.input.unwrap();
        client.write_all(b"!").unwrap();
        let mut all = vec![0; 3 * more.len() + 1];
        input.read_exact(&mut all).unwrap();
        assert_eq!(all.last(), Some(&b'!'), "and nothing is lost");
    }

    #[test]
    fn output_before_a_client_connects_is_not_lost() {
        let (_directory, path, mut endpoint, _console) = socket();
        endpoint.output.write_all(b"early").unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        assert_eq!(&read_exactly::<5>(&mut client), b"early");
        let mut output = Output::default();
        output.keep(&vec![b'x'; Output::CAPACITY]);
        output.keep(b"latest");
        assert_eq!(output.kept.len(), Output::CAPACITY);
        assert_eq!(output.kept.back(), Some(&b't'));
    }

    #[test]
    fn a_client_that_closed_its_input_still_gets_output() {
        let (_directory, path, mut endpoint, _console) = socket();
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"hello").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(&read_exactly::<5>(&mut *endpoint.input.unwrap()), b"hello");
        endpoint.output.write_all(b"you there?").unwrap();
        assert_eq!(&read_exactly::<10>(&mut client), b"you there?");
    }

    #[test]
    fn a_file_is_appended_to_after_others_have_truncated_it() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("console");
        std::fs::write(&path, "from an earlier machine").unwrap();
        let target = SerialTarget::File(path.clone());
        let (mut endpoint, console) = open(&target, Box::new(|| {})).unwrap();
        endpoint.output.write_all(b"before").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        endpoint.output.write_all(b"after").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"after");

        let link = directory.path().join("link");
        std::fs::hard_link(&path, &link).unwrap();
        let (_, same) = open(&SerialTarget::File(link), Box::new(|| {})).unwrap();
        let (_, other) =
            open(&SerialTarget::File(directory.path().join("other")), Box::new(|| {})).unwrap();
        assert!(console.shares_file_with(&same) && !console.shares_file_with(&other));
    }
}
