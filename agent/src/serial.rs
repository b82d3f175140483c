//! The serial port to the host.

use std::{
    fs::File,
    io::ErrorKind,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
};

use agent_protocol::{
    Answer, FrameError, FrameReader, Hello, MAGIC, Request, VERSION, write_frame,
};
use anyhow::Context;
use rustix::{
    event::{PollFd, PollFlags},
    system::uname,
    termios::{ControlModes, OptionalActions, tcdrain, tcgetattr, tcsetattr},
};

/// The first port is the kernel's console.
const PATH: &str = "/dev/ttyS1";

/// Requests come in without ever waiting for the rest of one; answers go out whole.
pub struct SerialPort {
    requests: FrameReader<File>,
    answers: File,
}

impl SerialPort {
    /// Opens the port and sends the greeting.
    pub fn open() -> anyhow::Result<Self> {
        let open = || -> Result<Self, FrameError> {
            let port = open()?;
            port.greet()?;
            Ok(port)
        };
        open().with_context(|| {
            format!("cannot send to the host over {PATH}: give the machine a second serial port")
        })
    }

    fn greet(&self) -> Result<(), FrameError> {
        std::io::Write::write_all(&mut &self.answers, &MAGIC)?;
        let kernel_release = uname().release().to_string_lossy().into_owned();
        write_frame(&self.answers, &Hello { version: VERSION, kernel_release })
    }

    /// For poll(2): readable when a request may have come.
    pub fn poll_fd(&self) -> PollFd<'_> {
        PollFd::from_borrowed_fd(self.requests.stream().as_fd(), PollFlags::IN)
    }

    /// The next request, if it is complete.
    pub fn request(&mut self) -> Result<Option<Request>, FrameError> {
        match self.requests.read() {
            Ok(request) => Ok(Some(request)),
            Err(FrameError::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends an answer.
    pub fn answer(&self, answer: &Answer) -> Result<(), FrameError> {
        write_frame(&self.answers, answer)
    }

    /// Waits until all that was sent has left the port.
    pub fn drain(&self) -> rustix::io::Result<()> {
        tcdrain(&self.answers)
    }
}

fn open() -> std::io::Result<SerialPort> {
    let requests =
        File::options().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(PATH)?;
    let mut settings = tcgetattr(&requests)?;
    settings.make_raw();
    settings.control_modes |= ControlModes::CLOCAL;
    settings.set_speed(115_200)?;
    tcsetattr(&requests, OptionalActions::Now, &settings)?;
    let answers = File::options().write(true).custom_flags(libc::O_NOCTTY).open(PATH)?;
    Ok(SerialPort { requests: FrameReader::new(requests), answers })
}
