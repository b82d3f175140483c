//! The connection to a guest's agent: one request at a time, each with a deadline.

use std::{
    io::{self, ErrorKind, Read},
    os::unix::net::UnixStream,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use agent_protocol::{
    Answer, Command, Failure, FrameError, FrameReader, Hello, Request, VERSION, Value, write_frame,
};

use super::GuestError;

/// How long a request may take, unless it is set otherwise.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to an agent whose greeting has come.
#[derive(Debug)]
pub(super) struct Channel(Mutex<State>);

#[derive(Debug)]
struct State {
    frames: FrameReader<TimedStream>,
    last_id: u32,
    deadline: Duration,
}

impl Channel {
    /// Waits for the agent's greeting.
    pub(super) fn open(stream: UnixStream, boot: Duration) -> Result<(Self, Hello), GuestError> {
        let frames = FrameReader::new(TimedStream { stream, until: Instant::now() });
        let mut state = State { frames, last_id: 0, deadline: DEADLINE };
        let hello = state.greet(boot)?;
        Ok((Self(Mutex::new(state)), hello))
    }

    /// Waits for another greeting, after the guest was restarted.
    pub(super) fn reopen(&self, boot: Duration) -> Result<Hello, GuestError> {
        self.state().greet(boot)
    }

    pub(super) fn set_deadline(&self, deadline: Duration) {
        self.state().deadline = deadline;
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask<T: TryFrom<Value>>(&self, command: Command) -> Result<T, GuestError> {
        let asked = command.to_string();
        let result = self.state().ask(command, &asked);
        match &result {
            Ok(_) => log::debug!("{asked}: done"),
            Err(error) => log::debug!("{error}"),
        }
        result?.try_into().map_err(|_| GuestError::OtherAnswer { asked })
    }

    /// A thread that panicked during a request left at most an answer, which the next request drops.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn greet(&mut self, boot: Duration) -> Result<Hello, GuestError> {
        self.frames.stream_mut().until = Instant::now() + boot;
        let hello = self
            .frames
            .skip_to_magic()
            .and_then(|()| self.frames.read::<Hello>())
            .map_err(|error| failed("boot until the agent sends its greeting", boot, error))?;
        match hello.version {
            VERSION => Ok(hello),
            other => Err(GuestError::OtherVersion(other)),
        }
    }

    fn ask(&mut self, command: Command, asked: &str) -> Result<Value, GuestError> {
        let deadline = self.deadline;
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let result = self
            .exchange(Request { id, command })
            .map_err(|error| failed(asked, deadline, error))?;
        let asked = asked.to_owned();
        result.map_err(|failure| match failure {
            Failure::Errno(errno) => GuestError::Denied { asked, denial: errno.into() },
            Failure::Fault(fault) => GuestError::Faulted { asked, fault },
            Failure::Ended(end) => GuestError::Ended { asked, end },
            Failure::Refused(why) => GuestError::Refused { asked, why },
        })
    }

    /// Answers to earlier requests, whose deadline had passed, are dropped.
    fn exchange(&mut self, request: Request) -> Result<Result<Value, Failure>, FrameError> {
        let stream = self.frames.stream_mut();
        stream.until = Instant::now() + self.deadline;
        stream.stream.set_write_timeout(Some(self.deadline))?;
        write_frame(&stream.stream, &request)?;
        loop {
            let answer: Answer = self.frames.read()?;
            if answer.id == request.id {
                return Ok(answer.result);
            }
        }
    }
}

fn failed(asked: &str, deadline: Duration, error: FrameError) -> GuestError {
    let asked = asked.to_owned();
    match error {
        FrameError::Io(error)
            if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) =>
        {
            GuestError::NoAnswer { asked, deadline }
        }
        source => GuestError::Channel { asked, source },
    }
}

/// A stream whose reads end at a point in time, however many they are.
#[derive(Debug)]
struct TimedStream {
    stream: UnixStream,
    until: Instant,
}

impl Read for TimedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, thread};

    use agent_protocol::{Errno, MAGIC};

    use super::*;
    use crate::guest::Denial;

    const SOON: Duration = Duration::from_millis(50);

    fn hello(mut stream: &UnixStream, version: u16) {
        stream.write_all(&MAGIC).unwrap();
        write_frame(stream, &Hello { version, kernel_release: "6.1".to_owned() }).unwrap();
    }

    /// A channel, and the agent's side of its stream.
    fn channel() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        hello(&theirs, VERSION);
        let (channel, hello) = Channel::open(ours, SOON).unwrap();
        assert_eq!(hello.kernel_release, "6.1");
        (channel, theirs)
    }

    #[test]
    fn a_denial_names_what_was_asked() {
        let (channel, agent) = channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let Request { id, .. } = FrameReader::new(&agent).read().unwrap();
                let result = Err(Failure::Errno(Errno::ENOMEM));
                write_frame(&agent, &Answer { id, result }).unwrap();
            });
            let error = channel.ask::<u64>(Command::Spawn).unwrap_err();
            assert_eq!(error.to_string(), "spawn a process: ENOMEM");
            let GuestError::Denied { denial, .. } = error else { panic!("{error}") };
            assert_eq!(denial, Denial::from(Errno::ENOMEM));
        });
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_one() {
        let (channel, agent) = channel();
        channel.set_deadline(SOON);
        let error = channel.ask::<u64>(Command::Spawn).unwrap_err();
        assert!(matches!(error, GuestError::NoAnswer { .. }), "{error}");
        channel.set_deadline(DEADLINE);
        for id in [1, 2] {
            write_frame(&agent, &Answer { id, result: Ok(Value::Word(id.into())) }).unwrap();
        }
        assert_eq!(channel.ask::<u64>(Command::Spawn).unwrap(), 2);
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error() {
        let (channel, agent) = channel();
        write_frame(&agent, &Answer { id: 1, result: Ok(Value::Done) }).unwrap();
        let error = channel.ask::<u64>(Command::Spawn).unwrap_err();
        assert!(matches!(error, GuestError::OtherAnswer { .. }), "{error}");
    }

    #[test]
    fn a_guest_without_a_greeting_or_with_another_protocol_version_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let error = Channel::open(ours, SOON).unwrap_err();
        assert!(matches!(error, GuestError::NoAnswer { .. }), "{error}");
        drop(theirs);
        let (ours, theirs) = UnixStream::pair().unwrap();
        hello(&theirs, VERSION + 1);
        let error = Channel::open(ours, SOON).unwrap_err();
        assert!(matches!(error, GuestError::OtherVersion(_)), "{error}");
    }
}
